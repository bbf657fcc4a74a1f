/* Computes the outputs of the fast heads in one call: what routers/heads/fast.py computes in some forty NumPy calls.
 *
 * Between two requests the caches of a processor are cold. Each NumPy call then costs about a microsecond before it
 * computes anything, so one call in place of forty takes a fifth of the time. The arithmetic is the same but for the
 * order of sums. `FastHeads` documents the tables; without this module it uses NumPy.
 *
 * Only the stable ABI of Python 3.11 is used, so that one build serves all later versions.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* x86-64 without AVX2 and with it, chosen when the module is loaded. */
#if defined(__x86_64__) && defined(__GNUC__) && defined(__gnu_linux__)
#define MULTIVERSIONED __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define MULTIVERSIONED
#endif
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#define PREFETCH(address) __builtin_prefetch(address)
#else
#define INLINE static inline
#define PREFETCH(address)
#endif

#define LANES 8            /* Numbers in a vector. */
#define CHAINS 4           /* Vectors of partial sums. */
#define STACK_TOKENS 160   /* Longer texts use memory of the heap. */
#define HASH_BITS 16       /* Rows that token bigrams are hashed into: HASH_BUCKETS of routers/tokens.py. */
#define FUNCTION_WORDS 2   /* Columns of a token's row that count foreign and English function words. */
#define SHARES 4           /* Numbers that `compute` returns. */
#define TERM_COLUMNS 2     /* Columns of a term's row after its weights: idf, and 1 for a term seen in training. */

typedef struct {
    PyObject_HEAD
    Py_buffer tokens;          /* int8 (vocabulary, dimensions + FUNCTION_WORDS) */
    Py_buffer scales;          /* float32 (vocabulary,) */
    Py_buffer directions;      /* float32 (classes + centroids, dimensions) */
    Py_buffer static_bias;     /* float32 (classes,) */
    Py_buffer terms;           /* float16 (vocabulary + buckets, classes + TERM_COLUMNS) */
    Py_buffer function_words;  /* float32 (FUNCTION_WORDS, classes): their weights */
    Py_buffer log_counts;      /* float32 (n,): 1 + log(count), from count 1 on */
    Py_ssize_t vocabulary, dimensions, classes, centroids, counts;
} Tables;

typedef struct {  /* Working memory of one call. */
    int32_t *rows;       /* distinct terms (2 * tokens,) */
    int32_t *repeats;    /* the count of each minus one */
    int32_t *slots;      /* hash table of indexes into `rows`, plus one (capacity,) */
    uint32_t capacity;   /* a power of two */
} Scratch;

INLINE float half_to_float(uint16_t half)
{
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float magnitude;
    memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude *= 0x1p112f;  /* the difference of the exponents' biases; exact, subnormal numbers included */
    return half & 0x8000 ? -magnitude : magnitude;
}

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));

/* Dot product in CHAINS vectors of partial sums, so that an addition need not wait for the one before. */
INLINE float dot(const float *left, const float *right, Py_ssize_t n)
{
    Lanes sums[CHAINS] = {0};
    Py_ssize_t i = 0;
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

/* Collect the distinct tokens and bigrams; return how many there are. */
INLINE Py_ssize_t count_terms(const Tables *self, const int64_t *ids, Py_ssize_t n, Scratch *scratch)
{
    const uint32_t mask = scratch->capacity - 1;
    const char *terms = self->terms.buf;
    const Py_ssize_t stride = (self->classes + TERM_COLUMNS) * (Py_ssize_t)sizeof(uint16_t);
    Py_ssize_t found = 0;
    memset(scratch->slots, 0, scratch->capacity * sizeof(int32_t));
    for (Py_ssize_t i = 0; i < 2 * n - 1; i++) {
        int32_t row;
        if (i < n) {
            row = (int32_t)ids[i];
        } else {
            uint64_t mixed = (uint64_t)ids[i - n] * 0x9E3779B1u + (uint64_t)ids[i - n + 1] * 0x85EBCA6Bu;
            row = (int32_t)((mixed >> 7 & ((1u << HASH_BITS) - 1)) + (uint64_t)self->vocabulary);
        }
        uint32_t slot = ((uint32_t)row * 0x9E3779B1u >> 8) & mask;
        while (scratch->slots[slot] && scratch->rows[scratch->slots[slot] - 1] != row)
            slot = (slot + 1) & mask;
        if (scratch->slots[slot]) {
            scratch->repeats[scratch->slots[slot] - 1]++;
            continue;
        }
        PREFETCH(terms + row * stride);
        scratch->rows[found] = row;
        scratch->repeats[found] = 0;
        scratch->slots[slot] = (int32_t)++found;
    }
    return found;
}

/* Write the lexical head's logits without bias, and return the share of known terms. */
INLINE float lexical_logits(const Tables *self, const Scratch *scratch, Py_ssize_t found, float *logits)
{
    const Py_ssize_t classes = self->classes;
    const float *log_counts = self->log_counts.buf;
    float squares = 0, known = 0;
    for (Py_ssize_t i = 0; i < found; i++) {
        const uint16_t *term = (const uint16_t *)self->terms.buf + scratch->rows[i] * (classes + TERM_COLUMNS);
        Py_ssize_t repeats = scratch->repeats[i] < self->counts ? scratch->repeats[i] : self->counts - 1;
        float tfidf = log_counts[repeats] * half_to_float(term[classes]);
        squares += tfidf * tfidf;
        known += tfidf * tfidf * half_to_float(term[classes + 1]);
        for (Py_ssize_t c = 0; c < classes; c++)
            logits[c] += tfidf * half_to_float(term[c]);
    }
    const float length = sqrtf(squares);
    for (Py_ssize_t c = 0; c < classes; c++)
        logits[c] /= length;
    return known / squares;
}

/* Write the unit static vector of the tokens, and the shares of function words among them. */
INLINE void static_vector(const Tables *self, const int64_t *ids, Py_ssize_t n, float *vector, float *function_words)
{
    const Py_ssize_t dimensions = self->dimensions;
    const float *scales = self->scales.buf;
    int32_t counted[FUNCTION_WORDS] = {0};
    for (Py_ssize_t i = 0; i < n; i++) {
        const int8_t *token = (const int8_t *)self->tokens.buf + ids[i] * (dimensions + FUNCTION_WORDS);
        const float scale = scales[ids[i]];
        for (Py_ssize_t d = 0; d < dimensions; d++)
            vector[d] += scale * (float)token[d];
        for (int word = 0; word < FUNCTION_WORDS; word++)
            counted[word] += token[dimensions + word];
    }
    for (int word = 0; word < FUNCTION_WORDS; word++)
        function_words[word] = (float)counted[word] / (float)(n > 1 ? n : 1);
    const float length = sqrtf(dot(vector, vector, dimensions));
    if (length > 0)
        for (Py_ssize_t d = 0; d < dimensions; d++)
            vector[d] /= length;
}

/* Compute everything about the tokens `ids` (n,); `out` as `compute` documents it, `bias` the logits of their script. */
MULTIVERSIONED static void compute_outputs(
    const Tables *self, const int64_t *ids, Py_ssize_t n, const float *bias, float *out, float *shares,
    Scratch *scratch)
{
    const Py_ssize_t classes = self->classes, dimensions = self->dimensions;
    float *lexical = out, *heads = out + classes, *vector = heads + classes;
    const float *directions = self->directions.buf, *static_bias = self->static_bias.buf;
    const float *words = self->function_words.buf;
    memset(shares, 0, SHARES * sizeof(float));
    memset(out, 0, (size_t)(2 * classes + dimensions) * sizeof(float));
    for (Py_ssize_t i = 0; i < n; i++)
        PREFETCH((const char *)self->tokens.buf + ids[i] * (dimensions + FUNCTION_WORDS));
    const Py_ssize_t found = n ? count_terms(self, ids, n, scratch) : 0;
    static_vector(self, ids, n, vector, shares + 2);
    for (Py_ssize_t c = 0; c < classes; c++)
        heads[c] = dot(directions + c * dimensions, vector, dimensions) + static_bias[c];
    shares[0] = -1;
    for (Py_ssize_t k = classes; k < classes + self->centroids; k++) {
        const float cosine = dot(directions + k * dimensions, vector, dimensions);
        shares[0] = cosine > shares[0] ? cosine : shares[0];
    }
    if (n)
        shares[1] = lexical_logits(self, scratch, found, lexical);
    for (Py_ssize_t c = 0; c < classes; c++)
        lexical[c] += bias[c] + (n ? shares[2] * words[c] + shares[3] * words[classes + c] : 0);
}

static int scratch_init(Scratch *scratch, Py_ssize_t n, int32_t *stack)
{
    scratch->capacity = 64;
    while (scratch->capacity < 4 * n)
        scratch->capacity *= 2;
    int32_t *memory = stack;
    if (n > STACK_TOKENS && (memory = PyMem_Malloc((size_t)(4 * n + scratch->capacity) * sizeof(int32_t))) == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    scratch->rows = memory;
    scratch->repeats = memory + 2 * n;
    scratch->slots = memory + 4 * n;
    return 0;
}

static int compute_checked(
    const Tables *self, const Py_buffer *ids, const Py_buffer *bias, const Py_buffer *out, float *shares)
{
    int32_t stack[4 * STACK_TOKENS + 1024];
    Scratch scratch;
    const Py_ssize_t n = ids->len / (Py_ssize_t)sizeof(int64_t);
    const int64_t *values = ids->buf;
    if (ids->len % (Py_ssize_t)sizeof(int64_t) || bias->len != self->classes * (Py_ssize_t)sizeof(float)
        || out->len != (2 * self->classes + self->dimensions) * (Py_ssize_t)sizeof(float)) {
        PyErr_SetString(PyExc_ValueError, "an array does not have the length that the tables demand");
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        if (values[i] < 0 || values[i] >= self->vocabulary) {
            PyErr_SetString(PyExc_IndexError, "a token id is outside the vocabulary");
            return -1;
        }
    if (n > INT32_MAX / 8 || scratch_init(&scratch, n, stack) < 0)
        return -1;
    compute_outputs(self, values, n, bias->buf, out->buf, shares, &scratch);
    if (scratch.rows != stack)
        PyMem_Free(scratch.rows);
    return 0;
}

PyDoc_STRVAR(compute_doc,
"compute(ids, bias, outputs)\n--\n\n"
"Write the outputs of the heads for a text with these token ids (int64) to `outputs`; return its shares.\n\n"
"`bias` are the lexical logits (n_classes,) of the text's writing systems. `outputs` (float32) gets the lexical and the\n"
"static logits (n_classes,) and the static vector (dimensions,). The shares are the cosine to the nearest centroid, the\n"
"share of known terms, and those of foreign and of English function words.");

static PyObject *tables_compute(Tables *self, PyObject *args)
{
    PyObject *sources[3];
    Py_buffer buffers[3];
    int opened = 0;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OOO:compute", &sources[0], &sources[1], &sources[2]))
        return NULL;
    for (; opened < 3; opened++)
        if (PyObject_GetBuffer(sources[opened], &buffers[opened], opened == 2 ? PyBUF_CONTIG : PyBUF_CONTIG_RO) < 0)
            break;
    float shares[SHARES];
    if (opened == 3 && compute_checked(self, &buffers[0], &buffers[1], &buffers[2], shares) == 0)
        result = Py_BuildValue("(dddd)", shares[0], shares[1], shares[2], shares[3]);
    while (opened--)
        PyBuffer_Release(&buffers[opened]);
    return result;
}

/* Open the buffer of a table. Its items have `size` bytes, its rows (of 1 or 2 axes) `columns`; -1: any number. */
static Py_ssize_t open_table(PyObject *source, Py_buffer *buffer, Py_ssize_t size, Py_ssize_t rows, Py_ssize_t columns)
{
    if (PyObject_GetBuffer(source, buffer, PyBUF_CONTIG_RO) < 0)
        return -1;
    const Py_ssize_t found = buffer->len / (columns * size);
    if (buffer->itemsize != size || buffer->len != found * columns * size || (rows >= 0 && found != rows)) {
        PyErr_SetString(PyExc_ValueError, "the shape or type of a table does not fit the others");
        return -1;
    }
    return found;
}

static void tables_clear(Tables *self)
{
    Py_buffer *buffers[] = {&self->tokens, &self->scales, &self->directions, &self->static_bias, &self->terms,
                            &self->function_words, &self->log_counts};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        if (buffers[i]->obj)
            PyBuffer_Release(buffers[i]);
}

static PyObject *tables_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"tokens", "scales", "directions", "static_bias", "terms", "function_words", "log_counts",
                            NULL};
    PyObject *s[7];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOOO:Tables", names, &s[0], &s[1], &s[2], &s[3], &s[4], &s[5],
                                     &s[6]))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Tables *self = (Tables *)allocate(type, 0);
    if (self == NULL)
        return NULL;
    const Py_ssize_t vocabulary = open_table(s[1], &self->scales, sizeof(float), -1, 1);
    const Py_ssize_t classes = vocabulary > 0 ? open_table(s[3], &self->static_bias, sizeof(float), -1, 1) : -1;
    if (classes <= 0)
        goto failed;
    if (PyObject_GetBuffer(s[0], &self->tokens, PyBUF_CONTIG_RO) < 0)
        goto failed;
    const Py_ssize_t dimensions = self->tokens.len / vocabulary - FUNCTION_WORDS;
    PyBuffer_Release(&self->tokens);
    if (dimensions <= 0 || open_table(s[0], &self->tokens, 1, vocabulary, dimensions + FUNCTION_WORDS) < 0)
        goto failed;
    const Py_ssize_t directions = open_table(s[2], &self->directions, sizeof(float), -1, dimensions);
    if (directions < 0
        || open_table(s[4], &self->terms, 2, vocabulary + (1 << HASH_BITS), classes + TERM_COLUMNS) < 0
        || open_table(s[5], &self->function_words, sizeof(float), FUNCTION_WORDS, classes) < 0)
        goto failed;
    const Py_ssize_t counts = open_table(s[6], &self->log_counts, sizeof(float), -1, 1);
    if (counts <= 0 || directions < classes || vocabulary > INT32_MAX - (1 << HASH_BITS))
        goto failed;
    self->vocabulary = vocabulary;
    self->dimensions = dimensions;
    self->classes = classes;
    self->centroids = directions - classes;
    self->counts = counts;
    return (PyObject *)self;
failed:
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "the shape or type of a table does not fit the others");
    Py_DECREF(self);
    return NULL;
}

static void tables_dealloc(Tables *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    tables_clear(self);
    release(self);
    Py_DECREF(type);
}

typedef struct {  /* Token ids that grow. */
    char *bytes;
    Py_ssize_t size, room;
} Ids;

static int ids_append(Ids *ids, const char *bytes, Py_ssize_t size)
{
    if (size == 0)
        return 0;
    if (ids->size + size > ids->room) {
        const Py_ssize_t room = 2 * (ids->size + size) + 512;
        char *grown = PyMem_Realloc(ids->bytes, (size_t)room);
        if (grown == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        ids->bytes = grown;
        ids->room = room;
    }
    memcpy(ids->bytes + ids->size, bytes, (size_t)size);
    ids->size += size;
    return 0;
}

enum {SPACE, LETTER, SYMBOL};

/* The kind of an ASCII character, as the pattern of WordCachedTokenizer splits words. */
static int kind_of(unsigned char character)
{
    if ((character >= 'a' && character <= 'z') || (character >= '0' && character <= '9'))
        return LETTER;
    return character == ' ' || (character >= 0x09 && character <= 0x0d) || (character >= 0x1c && character <= 0x1f)
               ? SPACE
               : SYMBOL;
}

/* Return a new reference to the token ids (bytes of int64) of one word. */
static PyObject *ids_of_word(const char *word, Py_ssize_t length, PyObject *cache, PyObject *add)
{
    PyObject *name = PyUnicode_FromStringAndSize(word, length);
    if (name == NULL)
        return NULL;
    PyObject *ids = PyDict_GetItemWithError(cache, name);
    if (ids != NULL)
        Py_INCREF(ids);
    else if (!PyErr_Occurred())
        ids = PyObject_CallFunctionObjArgs(add, name, NULL);
    Py_DECREF(name);
    return ids;
}

/* Append the ids of each word of `text`, which is lower case, to `outputs`; return 0, or -1 with an error. */
static int append_words(const char *text, Py_ssize_t length, PyObject *cache, PyObject *add, Ids *out)
{
    for (Py_ssize_t start = 0, end; start < length; start = end) {
        const int kind = kind_of((unsigned char)text[start]);
        end = start + 1;
        if (kind == SPACE)
            continue;
        while (kind == LETTER && end < length && kind_of((unsigned char)text[end]) == LETTER)
            end++;
        PyObject *ids = ids_of_word(text + start, end - start, cache, add);
        char *bytes;
        Py_ssize_t size;
        if (ids == NULL || PyBytes_AsStringAndSize(ids, &bytes, &size) < 0 || ids_append(out, bytes, size) < 0) {
            Py_XDECREF(ids);
            return -1;
        }
        Py_DECREF(ids);
    }
    return 0;
}

PyDoc_STRVAR(word_ids_doc,
"word_ids(text, cache, add)\n--\n\n"
"Return the token ids (bytes of int64) of an ASCII text. `cache` maps a word to its ids, `add` returns those of a word\n"
"that is not there. Raises ValueError for a text outside ASCII.");

static PyObject *word_ids(PyObject *module, PyObject *args)
{
    PyObject *text, *cache, *add, *result = NULL;
    Py_ssize_t length;
    (void)module;
    if (!PyArg_ParseTuple(args, "UO!O:word_ids", &text, &PyDict_Type, &cache, &add))
        return NULL;
    const char *source = PyUnicode_AsUTF8AndSize(text, &length);
    if (source == NULL)
        return NULL;
    if (length != PyUnicode_GetLength(text)) {
        PyErr_SetString(PyExc_ValueError, "the text is not ASCII");
        return NULL;
    }
    char *lower = PyMem_Malloc((size_t)length + 1);
    if (lower == NULL)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < length; i++)
        lower[i] = source[i] >= 'A' && source[i] <= 'Z' ? source[i] + ('a' - 'A') : source[i];
    Ids ids = {NULL, 0, 0};
    if (append_words(lower, length, cache, add, &ids) == 0)
        result = PyBytes_FromStringAndSize(ids.bytes, ids.size);
    PyMem_Free(ids.bytes);
    PyMem_Free(lower);
    return result;
}

static PyMethodDef module_methods[] = {
    {"word_ids", word_ids, METH_VARARGS, word_ids_doc},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef tables_methods[] = {
    {"compute", (PyCFunction)tables_compute, METH_VARARGS, compute_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot tables_slots[] = {
    {Py_tp_doc, "The tables of the fast heads, which stay in the memory of their arrays."},
    {Py_tp_new, tables_new},
    {Py_tp_dealloc, tables_dealloc},
    {Py_tp_methods, tables_methods},
    {0, NULL},
};

static PyType_Spec tables_spec = {"routers._kernel.Tables", sizeof(Tables), 0, Py_TPFLAGS_DEFAULT, tables_slots};

static int exec_module(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &tables_spec, NULL);
    if (type == NULL)
        return -1;
    const int failed = PyModule_AddObjectRef(module, "Tables", type);
    Py_DECREF(type);
    return failed;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, exec_module}, {0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernel", "The fast heads in one call (routers/_kernel.c).", 0, module_methods,
    module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    return PyModuleDef_Init(&module);
}
