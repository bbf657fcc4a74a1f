/* The arithmetic of the fast heads: what routers/heads/fast.py computes in some forty NumPy calls.
 *
 * Between two requests the caches of a processor are cold. Each NumPy call then costs about a microsecond before it
 * computes anything, so one call in place of forty takes a third of the time. The results are the same but for the
 * order of sums. Needs GCC or Clang.
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 8           /* Numbers in a vector. */
#define CHAINS 4          /* Vectors of partial sums. */
#define HASH_BITS 16      /* Binary logarithm of HASH_BUCKETS in routers/tokens.py, the rows of bigrams. */
#define FUNCTION_WORDS 2  /* Columns of a token's row that count foreign and English function words. */
#define TERM_COLUMNS 2    /* Columns of a term's row after its weights: idf, and 1 for a term seen in training. */

#define INLINE static inline __attribute__((always_inline))
/* Two versions on x86-64, with AVX2 and without, of which the loader selects one. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define MULTIVERSIONED __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define MULTIVERSIONED
#endif

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));

typedef struct {
    const int8_t *tokens;         /* (vocabulary, dimensions + FUNCTION_WORDS) */
    const float *scales;          /* (vocabulary,): a token's vector is its row times its scale */
    const float *directions;      /* (classes + centroids, dimensions): the static head's weights, the centroids */
    const float *static_bias;     /* (classes,) */
    const uint16_t *terms;        /* float16 (vocabulary + buckets, classes + TERM_COLUMNS): the lexical head's rows */
    const float *function_words;  /* (FUNCTION_WORDS, classes): their weights in the lexical head */
    const float *log_counts;      /* (counts,): 1 + log(count), from count 1 on */
    ptrdiff_t vocabulary, dimensions, classes, centroids, counts;
} Heads;

typedef struct {
    float nearest;     /* cosine of the static vector to the nearest centroid */
    float known;       /* share of known terms, by squared TF-IDF weight */
    float words[FUNCTION_WORDS];  /* shares of function words among the tokens */
} Shares;

typedef struct {  /* Working memory of one call. */
    int32_t *rows;      /* distinct terms (2 * tokens,) */
    int32_t *repeats;   /* the count of each minus one */
    int32_t *slots;     /* hash table of indexes into `rows`, plus one (capacity,) */
    uint32_t capacity;  /* a power of two */
} Scratch;

INLINE float half_to_float(uint16_t half)
{
    const uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float magnitude;
    memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude *= 0x1p112f;  /* the difference of the exponents' biases; exact, subnormal numbers included */
    return half & 0x8000 ? -magnitude : magnitude;
}

/* Dot product in several vectors of partial sums, so that consecutive additions are independent. */
INLINE float dot(const float *left, const float *right, ptrdiff_t n)
{
    Lanes sums[CHAINS] = {0};
    ptrdiff_t i = 0;
    for (; i + CHAINS * LANES <= n; i += CHAINS * LANES)
        for (int chain = 0; chain < CHAINS; chain++)
            sums[chain] += *(const Lanes *)(left + i + chain * LANES) * *(const Lanes *)(right + i + chain * LANES);
    const Lanes sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float total = 0;
    for (int lane = 0; lane < LANES; lane++)
        total += sum[lane];
    for (; i < n; i++)
        total += left[i] * right[i];
    return total;
}

/* Row of a bigram, as WordCachedTokenizer.bigrams computes it. */
INLINE int32_t bigram_row(const Heads *heads, int64_t first, int64_t second)
{
    const uint64_t mixed = (uint64_t)first * 0x9E3779B1u + (uint64_t)second * 0x85EBCA6Bu;
    return (int32_t)((ptrdiff_t)((mixed >> 7) & ((1u << HASH_BITS) - 1)) + heads->vocabulary);
}

/* Collect the distinct tokens and bigrams of `ids` (n,) with their counts; return how many there are. */
INLINE ptrdiff_t count_terms(const Heads *heads, const int64_t *ids, ptrdiff_t n, Scratch *scratch)
{
    const uint32_t mask = scratch->capacity - 1;
    ptrdiff_t found = 0;
    memset(scratch->slots, 0, scratch->capacity * sizeof(int32_t));
    for (ptrdiff_t i = 0; i < 2 * n - 1; i++) {
        const int32_t row = i < n ? (int32_t)ids[i] : bigram_row(heads, ids[i - n], ids[i - n + 1]);
        uint32_t slot = ((uint32_t)row * 0x9E3779B1u >> 8) & mask;
        while (scratch->slots[slot] && scratch->rows[scratch->slots[slot] - 1] != row)
            slot = (slot + 1) & mask;
        if (scratch->slots[slot]) {
            scratch->repeats[scratch->slots[slot] - 1]++;
            continue;
        }
        __builtin_prefetch(heads->terms + row * (heads->classes + TERM_COLUMNS));
        scratch->rows[found] = row;
        scratch->repeats[found] = 0;
        scratch->slots[slot] = (int32_t)++found;
    }
    return found;
}

/* Add the normalised TF-IDF sums of the terms to `logits`, which are zero; return the share of known terms. */
INLINE float lexical_logits(const Heads *heads, const Scratch *scratch, ptrdiff_t found, float *logits)
{
    const ptrdiff_t classes = heads->classes;
    float squares = 0, known = 0;
    for (ptrdiff_t i = 0; i < found; i++) {
        const uint16_t *term = heads->terms + scratch->rows[i] * (classes + TERM_COLUMNS);
        const ptrdiff_t repeats = scratch->repeats[i] < heads->counts ? scratch->repeats[i] : heads->counts - 1;
        const float tfidf = heads->log_counts[repeats] * half_to_float(term[classes]);
        squares += tfidf * tfidf;
        known += tfidf * tfidf * half_to_float(term[classes + 1]);
        for (ptrdiff_t c = 0; c < classes; c++)
            logits[c] += tfidf * half_to_float(term[c]);
    }
    const float length = sqrtf(squares);
    for (ptrdiff_t c = 0; c < classes; c++)
        logits[c] /= length;
    return known / squares;
}

/* Add the tokens' vectors to `vector`, which is zero; scale it to unit length. Write the shares of function words. */
INLINE void static_vector(const Heads *heads, const int64_t *ids, ptrdiff_t n, float *vector, float *words)
{
    const ptrdiff_t dimensions = heads->dimensions;
    int32_t counted[FUNCTION_WORDS] = {0};
    for (ptrdiff_t i = 0; i < n; i++) {
        const int8_t *token = heads->tokens + ids[i] * (dimensions + FUNCTION_WORDS);
        const float scale = heads->scales[ids[i]];
        for (ptrdiff_t d = 0; d < dimensions; d++)
            vector[d] += scale * (float)token[d];
        for (int word = 0; word < FUNCTION_WORDS; word++)
            counted[word] += token[dimensions + word];
    }
    for (int word = 0; word < FUNCTION_WORDS; word++)
        words[word] = (float)counted[word] / (float)(n > 1 ? n : 1);
    const float length = sqrtf(dot(vector, vector, dimensions));
    if (length > 0)
        for (ptrdiff_t d = 0; d < dimensions; d++)
            vector[d] /= length;
}

/* Compute both heads for the token ids (n,), which are inside the vocabulary.
 *
 * `bias` are the lexical logits (classes,) of the text's writing systems. `outputs` gets the lexical and the static
 * logits (classes,) and the static vector (dimensions,).
 */
MULTIVERSIONED static Shares compute_heads(
    const Heads *heads, const int64_t *ids, ptrdiff_t n, const float *bias, float *outputs, Scratch *scratch)
{
    const ptrdiff_t classes = heads->classes, dimensions = heads->dimensions;
    const float *centroids = heads->directions + classes * dimensions;
    float *lexical = outputs, *statics = lexical + classes, *vector = statics + classes;
    Shares shares = {.nearest = -1, .known = 0};
    memset(outputs, 0, (size_t)(2 * classes + dimensions) * sizeof(float));
    for (ptrdiff_t i = 0; i < n; i++)
        __builtin_prefetch(heads->tokens + ids[i] * (dimensions + FUNCTION_WORDS));
    const ptrdiff_t found = n ? count_terms(heads, ids, n, scratch) : 0;
    static_vector(heads, ids, n, vector, shares.words);
    for (ptrdiff_t c = 0; c < classes; c++)
        statics[c] = dot(heads->directions + c * dimensions, vector, dimensions) + heads->static_bias[c];
    for (ptrdiff_t k = 0; k < heads->centroids; k++) {
        const float cosine = dot(centroids + k * dimensions, vector, dimensions);
        shares.nearest = cosine > shares.nearest ? cosine : shares.nearest;
    }
    if (n)
        shares.known = lexical_logits(heads, scratch, found, lexical);
    for (ptrdiff_t c = 0; c < classes; c++) {
        lexical[c] += bias[c];
        for (int word = 0; word < FUNCTION_WORDS; word++)
            lexical[c] += shares.words[word] * heads->function_words[word * classes + c];
    }
    return shares;
}
