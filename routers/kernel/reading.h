/* The probabilities of the units of a message: what `class_probabilities` of coe/routing/units.py computes.
 *
 * The names of features are those of coe/routing/reading.json, hashed byte by byte in UTF-8.
 */

#define MAX_UNITS 150           /* Those of units.py. */
#define MAX_UNIT_WORDS 40
#define MAX_WORD_CHARACTERS 400
#define MAX_STEMS 32            /* Words of the label, tags and heading of a unit: more than units.py gives. */
#define TINY 1e-12
#define CERTAIN 0.9

typedef double Scores[3];

/* Features without a word. */
enum {LENGTH, PARAGRAPH = LENGTH + 7, TOPICAL = PARAGRAPH + 9, PART = TOPICAL + 5, NO_WORDS = PART + 24, ASKS, QUESTION,
      QUOTED, DIGITS, NO_SPACE, CITED, ONLY, ONE_PARAGRAPH, PARAGRAPHS, QUESTION_ELSEWHERE, NO_QUESTION, FIRST, SECOND,
      LATER, ASKED, ASKED_ELSEWHERE, NOTHING_ASKED, AT_QUESTION, AFTER_QUESTION, BEFORE_QUESTION, LABELLED, LAST,
      LAST_BUT_ONE, FIRST_PARAGRAPH, LAST_PARAGRAPH, LABEL_AGAIN, LABEL_BEFORE, FEW, AFTER_COLON, N_NAMES};
static const char *const NAMES[] = {
    "no words", "asks", "question", "quoted", "digits", "no space", "cited", "only", "one paragraph", "paragraphs",
    "question elsewhere", "no question", "first", "second", "later", "asked", "asked elsewhere", "nothing asked",
    "at question", "after question", "before question", "labelled", "last", "last but one", "first paragraph",
    "last paragraph", "label again", "label before", "few", "after colon"};  /* from NO_WORDS on */
/* Prefixes of features that are words, and of the words in lists. */
enum {OF_WORD, OF_NAME, OPENS, NEAR_LABEL, FAR_LABEL, OF_TAG, OF_HEADING, AFTER, ASKING, TRANSFORMING, REQUESTING,
      N_PREFIXES};
static const char *const PREFIXES[] = {"word ", "name ", "opens ", "near label ", "far label ", "tag ", "heading ",
                                       "after ", "questions: ", "transformations: ", "request_labels: "};

typedef struct {
    const uint8_t *letters;  /* (65536 / 8,): bits of the letters outside ASCII; in the plane beyond none is one */
    const double *weights;   /* (rows, 3): logits of the features; words in lists have rows too */
    const double *bias;      /* (3,), and behind it the transitions (4, 3, 3) */
    uint64_t *keys;          /* hash table of the names (capacity,); 0: free */
    int32_t *rows;           /* (capacity,), behind the keys */
    uint64_t capacity;       /* a power of two */
    uint64_t prefixes[N_PREFIXES];
    int32_t names[N_NAMES];  /* rows, -1 for one without weights */
} Reading;

typedef struct {
    const char *text, *lower, *kind;
    ptrdiff_t size, lower_size, length;  /* bytes of `text` and `lower`; characters of the text */
    uint64_t stems[MAX_STEMS], label;    /* hashes of the stems under which the unit stands; of the whole label */
    uint8_t prefixes[MAX_STEMS];
    int n_stems, paragraph, section, is_name, question, asked;
    Scores scores;
} Unit;

/* --------------------------------------------------------------------------------------------------------- names */

INLINE uint64_t hash_bytes(uint64_t hash, const char *bytes, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++)
        hash = (hash ^ (unsigned char)bytes[i]) * 0x100000001b3u;
    return hash;
}

INLINE uint64_t hash_of(const char *bytes, ptrdiff_t n) { return hash_bytes(0xcbf29ce484222325u, bytes, n); }

INLINE uint64_t key_of(uint64_t prefix, uint64_t word)
{
    const uint64_t mixed = (prefix ^ (word >> 29) ^ word) * 0x9E3779B97F4A7C15u;
    return mixed ? mixed : 1;
}

/* The key of a name: of its last word and what stands before it, or of a name without a word. */
static uint64_t key_of_name(const char *name, ptrdiff_t n)
{
    ptrdiff_t word = n;
    for (; word > 0 && name[word - 1] != ' '; word--) {
    }
    return key_of(hash_of(name, word), hash_of(name + word, n - word));
}

/* The slot of a key, or the free one where it belongs. */
INLINE uint64_t slot_of(const Reading *model, uint64_t key)
{
    uint64_t slot = (key >> 17) & (model->capacity - 1);
    while (model->keys[slot] && model->keys[slot] != key)
        slot = (slot + 1) & (model->capacity - 1);
    return slot;
}

INLINE int32_t find_key(const Reading *model, uint64_t key)
{
    const uint64_t slot = slot_of(model, key);
    return model->keys[slot] ? model->rows[slot] : -1;
}

INLINE int32_t find_word(const Reading *model, int prefix, uint64_t word)
{
    return find_key(model, key_of(model->prefixes[prefix], word));
}

INLINE int32_t find_name(const Reading *model, const char *name)
{
    return find_key(model, key_of_name(name, (ptrdiff_t)strlen(name)));
}

/* Look up the features without a word. */
static void open_names(Reading *model)
{
    static const char *const parts[] = {"asks", "beside question", "of no question"};
    static const char *const counted[] = {"length", "paragraph", "topical words"};
    char name[64];
    for (int i = 0; i < N_PREFIXES; i++)
        model->prefixes[i] = hash_of(PREFIXES[i], (ptrdiff_t)strlen(PREFIXES[i]));
    for (int i = 0; i < NO_WORDS; i++) {
        if (i < PART) {
            const int first = i < PARAGRAPH ? LENGTH : i < TOPICAL ? PARAGRAPH : TOPICAL;
            PyOS_snprintf(name, sizeof name, "%s %d", counted[(first > LENGTH) + (first > PARAGRAPH)], i - first);
        } else
            PyOS_snprintf(name, sizeof name, "part %s%s, %d", parts[(i - PART) / 8],
                          (i - PART) % 8 < 4 ? "" : ", longest", (i - PART) % 4);
        model->names[i] = find_name(model, name);
    }
    for (int i = NO_WORDS; i < N_NAMES; i++)
        model->names[i] = find_name(model, NAMES[i - NO_WORDS]);
}

/* ------------------------------------------------------------------------------------------------------ features */

INLINE void add_row(const Reading *model, Unit *unit, int32_t row)
{
    for (int k = 0; row >= 0 && k < 3; k++)
        unit->scores[k] += model->weights[3 * row + k];
}

INLINE void add(const Reading *model, Unit *unit, int holds, int name)
{
    if (holds)
        add_row(model, unit, model->names[name]);
}

INLINE int at_most(ptrdiff_t number, int most) { return number < most ? (int)number : most; }

INLINE int is_any(char byte, const char *bytes) { return byte && strchr(bytes, byte) != NULL; }

INLINE int is_digit(char byte) { return byte >= '0' && byte <= '9'; }

/* The number of bytes of the letter at the begin of a text in lower case; 0 if it does not begin with a letter. */
INLINE int letter_size(const Reading *model, const char *text, const char *end)
{
    const unsigned char *b = (const unsigned char *)text;
    if (b[0] < 0x80)
        return b[0] >= 'a' && b[0] <= 'z';
    const int size = b[0] < 0xe0 ? 2 : 3;
    if (b[0] < 0xc0 || b[0] >= 0xf0 || end - text < size)
        return 0;  /* inside a character, or one beyond the plane */
    const uint32_t point = size == 2 ? (b[0] & 31u) << 6 | (b[1] & 63u)
                                     : (b[0] & 15u) << 12 | (b[1] & 63u) << 6 | (b[2] & 63u);
    return model->letters[point >> 3] >> (point & 7) & 1 ? size : 0;
}

/* Write the hashes of the first words, each one once, and of the first one; return how many there are. */
static int words_of(const Reading *model, const Unit *unit, uint64_t *words)
{
    const char *at = unit->lower, *end = at + unit->lower_size;
    int n = 0;
    for (int read = 0, size; read < MAX_UNIT_WORDS && at < end; at++) {
        const char *begin = at;
        while (at < end && (size = letter_size(model, at, end)) > 0)
            at += size;
        if (at == begin)
            continue;
        read++;
        words[n] = hash_of(begin, at - begin);
        int known = 0;
        while (words[known] != words[n])
            known++;
        n += known == n;
    }
    return n;
}

/* True if a unit begins like "[1]" or "(1)". */
INLINE int is_cited(const char *text, ptrdiff_t size)
{
    ptrdiff_t at = 1;
    if (text[0] == '(')
        return size > 2 && is_digit(text[1]) && text[2] == ')';
    while (at < size && at <= 12 && (is_digit(text[at]) || ((text[at] | 32) >= 'a' && (text[at] | 32) <= 'z')
                                     || text[at] == '_' || text[at] == ' '))
        at++;
    return text[0] == '[' && at > 1 && at < size && text[at] == ']';
}

/* True if a text ends with a question mark, after which quotes may close. */
INLINE int is_question(const char *text, ptrdiff_t size)
{
    for (ptrdiff_t quote = 1; size > 0 && quote; size -= quote)
        quote = size >= 3 && memcmp(text + size - 3, "\xe2\x80\x9d", 3) == 0 ? 3 : is_any(text[size - 1], " \"')");
    return size > 0 && text[size - 1] == '?';
}

/* Add the weights of what a unit is by itself. Return the hash of its first word, 0 without one. */
static uint64_t add_form(const Reading *model, Unit *unit)
{
    uint64_t words[MAX_UNIT_WORDS + 1];
    const int n = words_of(model, unit, words), prefix = unit->is_name ? OF_NAME : OF_WORD;
    int unknown = 0, digits = 0;
    for (int i = 0; i < n; i++) {
        const int32_t row = find_word(model, prefix, words[i]);
        add_row(model, unit, row);
        unknown += row < 0;
    }
    for (ptrdiff_t i = 0; i < unit->lower_size && !digits; i++)
        digits = is_digit(unit->lower[i]);
    unit->question = is_question(unit->text, unit->size);
    add_row(model, unit, find_name(model, unit->kind));
    add_row(model, unit, n ? find_word(model, OPENS, words[0]) : model->names[NO_WORDS]);
    add(model, unit, 1, LENGTH + at_most(unit->length / 40, 6));
    add(model, unit, 1, TOPICAL + (unit->is_name ? 0 : at_most(unknown, 4)));
    add(model, unit, n && find_word(model, ASKING, words[0]) >= 0, ASKS);
    add(model, unit, unit->question, QUESTION);
    add(model, unit, is_any(unit->text[0], "\"'") || strncmp(unit->text, "\xe2\x80\x9c", 3) == 0, QUOTED);
    add(model, unit, digits, DIGITS);
    add(model, unit, unit->length > 12 && memchr(unit->text, ' ', (size_t)unit->size) == NULL, NO_SPACE);
    add(model, unit, is_cited(unit->text, unit->size), CITED);
    for (int i = 0; i < unit->n_stems; i++) {
        add_row(model, unit, find_word(model, unit->prefixes[i], unit->stems[i]));
        unit->asked |= find_word(model, REQUESTING, unit->stems[i]) >= 0;
    }
    return n ? words[0] : 0;
}

/* Return the end of the units from `begin` on that stand in one paragraph, and in one section with `by_section`. Add up
 * their characters; by section, those of names do not count. */
static int run_end(const Unit *units, int n, int begin, int by_section, ptrdiff_t *length)
{
    int end = begin;
    for (*length = 0; end < n && units[end].paragraph == units[begin].paragraph
         && (!by_section || units[end].section == units[begin].section); end++)
        *length += by_section && units[end].is_name ? 0 : units[end].length;
    return end;
}

/* Add the weights of paragraphs and of parts of the message; return how many paragraphs there are. */
static int add_parts(const Reading *model, Unit *units, int n, int has_question)
{
    int paragraphs = 0;
    ptrdiff_t length, longest = 0;
    for (int i = 0, end; i < n; i = end, paragraphs++) {
        end = run_end(units, n, i, 0, &length);
        for (int j = i; j < end; j++)
            add(model, &units[j], 1, PARAGRAPH + at_most(length / 100, 8));
    }
    for (int i = 0; i < n;) {
        i = run_end(units, n, i, 1, &length);
        longest = length > longest ? length : longest;
    }
    for (int i = 0, end; i < n; i = end) {
        int count = 0, asks = 0;
        end = run_end(units, n, i, 1, &length);
        for (int j = i; j < end; j++) {
            count += !units[j].is_name;
            asks |= units[j].question;
        }
        for (int j = i; j < end; j++)
            add(model, &units[j], 1, PART + (asks ? 0 : has_question ? 8 : 16) + 4 * (length == longest) + at_most(count, 3));
    }
    return paragraphs;
}

/* Add the weights of the label that a unit shares with others. */
static void add_label(const Reading *model, const Unit *units, int n, Unit *unit)
{
    int first = -1, last = -1;
    for (int i = 0; i < n; i++)
        if (units[i].label == unit->label && !units[i].is_name) {
            first = first < 0 ? units[i].section : first;
            last = units[i].section;
        }
    add(model, unit, last > unit->section, LABEL_AGAIN);
    add(model, unit, first >= 0 && first < unit->section && unit->section >= last, LABEL_BEFORE);
}

/* Compute the logits of all units. */
static void add_features(const Reading *model, Unit *units, int n)
{
    int question = -1, has_asked = 0, after[3];
    uint64_t openings[3];
    for (int i = 0; i < n; i++) {
        const uint64_t first = add_form(model, &units[i]);
        question = units[i].question ? i : question;
        has_asked |= units[i].asked && !units[i].is_name;
        if (i < 3) {
            openings[i] = first;
            after[i] = first && find_word(model, TRANSFORMING, first) >= 0 ? find_word(model, AFTER, first) : -1;
            for (int j = 0; j < i; j++)
                after[i] = openings[j] == first ? -1 : after[i];
        }
    }
    const int paragraphs = add_parts(model, units, n, question >= 0);
    for (int i = 0; i < n; i++) {
        Unit *unit = &units[i];
        for (int k = 0; k < 3; k++)
            unit->scores[k] += model->bias[k];
        for (int j = 0; j < i && j < 3; j++)
            add_row(model, unit, after[j]);
        add(model, unit, 1, n == 1 ? ONLY : paragraphs == 1 ? ONE_PARAGRAPH : PARAGRAPHS);
        add(model, unit, 1, question >= 0 ? QUESTION_ELSEWHERE : NO_QUESTION);
        add(model, unit, 1, i == 0 ? FIRST : i == 1 ? SECOND : LATER);
        add(model, unit, 1, unit->asked ? ASKED : has_asked ? ASKED_ELSEWHERE : NOTHING_ASKED);
        add(model, unit, question >= 0, i == question ? AT_QUESTION : i > question ? AFTER_QUESTION : BEFORE_QUESTION);
        add(model, unit, unit->n_stems > 0, LABELLED);
        add(model, unit, i == n - 1, LAST);
        add(model, unit, i == n - 2, LAST_BUT_ONE);
        add(model, unit, unit->paragraph == units[0].paragraph, FIRST_PARAGRAPH);
        add(model, unit, unit->paragraph == units[n - 1].paragraph, LAST_PARAGRAPH);
        add(model, unit, n <= 3, FEW);
        add(model, unit, i > 0 && units[i - 1].text[units[i - 1].size - 1] == ':', AFTER_COLON);
        if (unit->label)
            add_label(model, units, n, unit);
    }
}

/* ------------------------------------------------------------------------------------------------- probabilities */

INLINE void normalize(double *scores)
{
    const double total = scores[0] + scores[1] + scores[2] + 3 * TINY;
    for (int k = 0; k < 3; k++)
        scores[k] = (scores[k] + TINY) / total;
}

INLINE void multiply(double *scores, const double *by)
{
    for (int k = 0; k < 3; k++)
        scores[k] *= by[k];
    normalize(scores);
}

/* The factors between the classes of two units: in one paragraph, under one label, in one section, in others. */
INLINE const double *step_of(const Reading *model, const Unit *before, const Unit *unit)
{
    const int relation = before->paragraph == unit->paragraph ? 0 : unit->label ? 1 : 2;
    return model->bias + 3 + 9 * (before->section != unit->section ? 3 : relation);
}

/* Turn the logits of all units into probabilities; those of units that are no names depend on their neighbours. */
static void compute_probabilities(const Reading *model, Unit *units, int n)
{
    Unit *linked[MAX_UNITS];
    Scores after[MAX_UNITS], before = {1, 1, 1}, own;
    int count = 0, certain = 0;
    for (int i = 0; i < n; i++) {
        double *scores = units[i].scores;
        const double largest = fmax(scores[0], fmax(scores[1], scores[2]));
        for (int k = 0; k < 3; k++)
            scores[k] = exp(scores[k] - largest);
        normalize(scores);
        certain += scores[0] > CERTAIN;
        if (!units[i].is_name)
            linked[count++] = &units[i];
    }
    if (certain == n)
        return;
    for (int i = count - 1; i >= 0; i--) {  /* what the following units say of each one */
        after[i][0] = after[i][1] = after[i][2] = 1;
        if (i == count - 1)
            continue;
        const double *step = step_of(model, linked[i], linked[i + 1]);
        memcpy(own, linked[i + 1]->scores, sizeof own);
        multiply(own, after[i + 1]);
        for (int j = 0; j < 3; j++)
            after[i][j] = step[3 * j] * own[0] + step[3 * j + 1] * own[1] + step[3 * j + 2] * own[2];
        normalize(after[i]);
    }
    for (int i = 0; i < count; i++) {
        multiply(linked[i]->scores, before);
        memcpy(own, linked[i]->scores, sizeof own);
        multiply(linked[i]->scores, after[i]);
        if (i == count - 1)
            break;
        const double *step = step_of(model, linked[i], linked[i + 1]);
        for (int k = 0; k < 3; k++)
            before[k] = own[0] * step[k] + own[1] * step[3 + k] + own[2] * step[6 + k];
        normalize(before);
    }
}
