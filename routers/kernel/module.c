/* The Python module of the kernel: `Tables` computes the fast heads (heads.h), `word_ids` the token ids of a text, and
 * `Reading` the classes of the units of a message (reading.h).
 *
 * Only the stable ABI of Python 3.11 is used, so that one build serves all later versions.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "heads.h"
#include "reading.h"

#define STACK_TOKENS 160  /* Texts with more tokens use the heap. */

/* ---------------------------------------------------------------------------------------------- the fast heads */

enum {TOKENS, SCALES, DIRECTIONS, STATIC_BIAS, TERMS, FUNCTION_WORD_WEIGHTS, LOG_COUNTS, N_TABLES};

typedef struct {
    PyObject_HEAD
    Py_buffer buffers[N_TABLES];  /* keep the memory of the tables alive */
    Heads heads;
} Tables;

/* Open a table whose items have `size` bytes and whose rows have `columns` of them. Return how many rows it has; -1
 * with an error if that is not `rows`, where that is not negative. */
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

/* Return the columns of a table of bytes with so many rows; -1 with an error. */
static Py_ssize_t columns_of(PyObject *source, Py_ssize_t rows)
{
    Py_buffer buffer;
    if (PyObject_GetBuffer(source, &buffer, PyBUF_CONTIG_RO) < 0)
        return -1;
    const Py_ssize_t columns = buffer.len / rows;
    PyBuffer_Release(&buffer);
    return columns;
}

/* Open all tables; return 0, or -1: the caller sets an error if none is set. */
static int open_tables(Tables *self, PyObject **sources)
{
    Py_buffer *buffers = self->buffers;
    Heads *heads = &self->heads;
    heads->vocabulary = open_table(sources[SCALES], &buffers[SCALES], sizeof(float), -1, 1);
    if (heads->vocabulary <= 0 || heads->vocabulary > INT32_MAX - (1 << HASH_BITS))
        return -1;
    heads->classes = open_table(sources[STATIC_BIAS], &buffers[STATIC_BIAS], sizeof(float), -1, 1);
    heads->dimensions = columns_of(sources[TOKENS], heads->vocabulary) - FUNCTION_WORDS;
    if (heads->classes <= 0 || heads->dimensions <= 0)
        return -1;
    const Py_ssize_t dimensions = heads->dimensions, classes = heads->classes, rows = heads->vocabulary;
    const Py_ssize_t terms = rows + (1 << HASH_BITS);
    if (open_table(sources[TOKENS], &buffers[TOKENS], 1, rows, dimensions + FUNCTION_WORDS) < 0
        || open_table(sources[TERMS], &buffers[TERMS], sizeof(uint16_t), terms, classes + TERM_COLUMNS) < 0
        || open_table(sources[FUNCTION_WORD_WEIGHTS], &buffers[FUNCTION_WORD_WEIGHTS], sizeof(float), FUNCTION_WORDS,
                      classes) < 0)
        return -1;
    heads->counts = open_table(sources[LOG_COUNTS], &buffers[LOG_COUNTS], sizeof(float), -1, 1);
    heads->centroids = open_table(sources[DIRECTIONS], &buffers[DIRECTIONS], sizeof(float), -1, dimensions) - classes;
    if (heads->counts <= 0 || heads->centroids < 0)
        return -1;
    heads->tokens = buffers[TOKENS].buf;
    heads->scales = buffers[SCALES].buf;
    heads->directions = buffers[DIRECTIONS].buf;
    heads->static_bias = buffers[STATIC_BIAS].buf;
    heads->terms = buffers[TERMS].buf;
    heads->function_words = buffers[FUNCTION_WORD_WEIGHTS].buf;
    heads->log_counts = buffers[LOG_COUNTS].buf;
    return 0;
}

static PyObject *tables_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"tokens", "scales", "directions", "static_bias", "terms", "function_words", "log_counts",
                            NULL};
    PyObject *s[N_TABLES];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOOO:Tables", names, &s[0], &s[1], &s[2], &s[3], &s[4], &s[5],
                                     &s[6]))
        return NULL;
    Tables *self = (Tables *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL || open_tables(self, s) == 0)
        return (PyObject *)self;
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "the shape or type of a table does not fit the others");
    Py_DECREF(self);
    return NULL;
}

static void tables_dealloc(Tables *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    for (int i = 0; i < N_TABLES; i++)
        if (self->buffers[i].obj)
            PyBuffer_Release(&self->buffers[i]);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* Give `scratch` memory for n tokens, on the stack if that is enough; return 0, or -1 with an error. */
static int scratch_init(Scratch *scratch, Py_ssize_t n, int32_t *stack)
{
    int32_t *memory = stack;
    scratch->capacity = 64;
    while (scratch->capacity < 4 * n)
        scratch->capacity *= 2;
    if (n > STACK_TOKENS && (memory = PyMem_Malloc((size_t)(4 * n + scratch->capacity) * sizeof(int32_t))) == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    scratch->rows = memory;
    scratch->repeats = memory + 2 * n;
    scratch->slots = memory + 4 * n;
    return 0;
}

static PyObject *compute_checked(const Heads *heads, const Py_buffer *ids, const Py_buffer *bias, const Py_buffer *out)
{
    int32_t stack[4 * STACK_TOKENS + 1024];  /* the last part for the hash table: at least 4 * STACK_TOKENS */
    Scratch scratch;
    const Py_ssize_t n = ids->len / (Py_ssize_t)sizeof(int64_t), outputs = 2 * heads->classes + heads->dimensions;
    const int64_t *values = ids->buf;
    if (ids->len % (Py_ssize_t)sizeof(int64_t) || bias->len != heads->classes * (Py_ssize_t)sizeof(float)
        || out->len != outputs * (Py_ssize_t)sizeof(float) || n > INT32_MAX / 8) {
        PyErr_SetString(PyExc_ValueError, "an array does not have the length that the tables demand");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        if (values[i] < 0 || values[i] >= heads->vocabulary) {
            PyErr_SetString(PyExc_IndexError, "a token id is outside the vocabulary");
            return NULL;
        }
    if (scratch_init(&scratch, n, stack) < 0)
        return NULL;
    const Shares shares = compute_heads(heads, values, n, bias->buf, out->buf, &scratch);
    if (scratch.rows != stack)
        PyMem_Free(scratch.rows);
    return Py_BuildValue("(dddd)", shares.nearest, shares.known, shares.words[0], shares.words[1]);
}

static PyObject *tables_compute(Tables *self, PyObject *args)
{
    PyObject *sources[3], *result = NULL;
    Py_buffer buffers[3];
    int opened = 0;
    if (!PyArg_ParseTuple(args, "OOO:compute", &sources[0], &sources[1], &sources[2]))
        return NULL;
    while (opened < 3  /* the last one is written */
           && PyObject_GetBuffer(sources[opened], &buffers[opened], opened == 2 ? PyBUF_CONTIG : PyBUF_CONTIG_RO) == 0)
        opened++;
    if (opened == 3)
        result = compute_checked(&self->heads, &buffers[0], &buffers[1], &buffers[2]);
    while (opened--)
        PyBuffer_Release(&buffers[opened]);
    return result;
}

/* -------------------------------------------------------------------------------------------------------- words */

enum {SPACE, LETTER, SYMBOL};

typedef struct {  /* Token ids of a text, as bytes. */
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

/* The kind of an ASCII character in lower case, as the pattern of WordCachedTokenizer splits words. */
static int kind_of(unsigned char character)
{
    if ((character >= 'a' && character <= 'z') || (character >= '0' && character <= '9'))
        return LETTER;
    if (character == ' ' || (character >= 0x09 && character <= 0x0d) || (character >= 0x1c && character <= 0x1f))
        return SPACE;
    return SYMBOL;
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

/* Append the ids of each word of `text`, which is lower case, to `out`; return 0, or -1 with an error. */
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

static PyObject *word_ids(PyObject *module, PyObject *args)
{
    PyObject *text, *cache, *add, *result = NULL;
    Py_ssize_t length;
    Ids ids = {NULL, 0, 0};
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
    if (append_words(lower, length, cache, add, &ids) == 0)
        result = PyBytes_FromStringAndSize(ids.bytes, ids.size);
    PyMem_Free(ids.bytes);
    PyMem_Free(lower);
    return result;
}

/* ------------------------------------------------------------------------------------------------------- reading */

typedef struct {
    PyObject_HEAD
    Py_buffer buffers[3];  /* weights, bias, letters */
    Reading model;
} ReadingObject;

/* Put the names, whose rows are their indexes, into the hash table; return 0, or -1 with an error. */
static int open_reading(ReadingObject *self, PyObject *names)
{
    Reading *model = &self->model;
    const Py_ssize_t n = PyList_Size(names);
    for (model->capacity = 64; model->capacity < 4 * (uint64_t)n;)
        model->capacity *= 2;
    model->keys = PyMem_Calloc(model->capacity, sizeof(uint64_t) + sizeof(int32_t));
    if (model->keys == NULL)
        return PyErr_NoMemory(), -1;
    model->rows = (int32_t *)(model->keys + model->capacity);
    for (Py_ssize_t row = 0, size; row < n; row++) {
        const char *name = PyUnicode_AsUTF8AndSize(PyList_GetItem(names, row), &size);
        if (name == NULL)
            return -1;
        const uint64_t key = key_of_name(name, size), slot = slot_of(model, key);
        model->keys[slot] = key;
        model->rows[slot] = (int32_t)row;
    }
    model->weights = self->buffers[0].buf;
    model->bias = self->buffers[1].buf;
    model->letters = self->buffers[2].buf;
    open_names(model);
    return 0;
}

static PyObject *reading_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"names", "weights", "bias", "letters", NULL};
    PyObject *names, *s[3];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OOO:Reading", keywords, &PyList_Type, &names, &s[0], &s[1], &s[2]))
        return NULL;
    ReadingObject *self = (ReadingObject *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self && open_table(s[0], &self->buffers[0], sizeof(double), PyList_Size(names), 3) >= 0
        && open_table(s[1], &self->buffers[1], sizeof(double), 13, 3) >= 0
        && open_table(s[2], &self->buffers[2], 1, 0x10000 / 8, 1) >= 0 && open_reading(self, names) == 0)
        return (PyObject *)self;
    Py_XDECREF((PyObject *)self);
    return NULL;
}

static void reading_dealloc(ReadingObject *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    for (int i = 0; i < 3; i++)
        if (self->buffers[i].obj)
            PyBuffer_Release(&self->buffers[i]);
    PyMem_Free(self->model.keys);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* Add the hashes of stems, which are features with this prefix; return that of all, 0 without one or with an error. */
static uint64_t add_stems(Unit *unit, PyObject *stems, int prefix)
{
    uint64_t all = 0;
    for (Py_ssize_t i = 0, size; i < PyTuple_Size(stems) && unit->n_stems < MAX_STEMS; i++) {
        const char *stem = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(stems, i), &size);
        if (stem == NULL)
            return 0;
        unit->prefixes[unit->n_stems] = (uint8_t)prefix;
        unit->stems[unit->n_stems] = hash_of(stem, size);
        all = key_of(all + 1, unit->stems[unit->n_stems++]);
    }
    return all;
}

/* Read a tuple as units.Unit; `lower` gets its first characters in lower case. Return 0, or -1 with an error. */
static int read_unit(Unit *unit, PyObject *item, PyObject **lower)
{
    PyObject *text, *label, *tags, *heading, *head;
    int near;
    memset(unit, 0, sizeof *unit);
    if (!PyArg_ParseTuple(item, "UsiiO!pO!O!", &text, &unit->kind, &unit->paragraph, &unit->section, &PyTuple_Type,
                          &label, &near, &PyTuple_Type, &tags, &PyTuple_Type, &heading)
        || (unit->text = PyUnicode_AsUTF8AndSize(text, &unit->size)) == NULL
        || (head = PyUnicode_Substring(text, 0, MAX_WORD_CHARACTERS)) == NULL)
        return -1;
    *lower = PyObject_CallMethod(head, "lower", NULL);
    Py_DECREF(head);
    if (*lower == NULL || (unit->lower = PyUnicode_AsUTF8AndSize(*lower, &unit->lower_size)) == NULL)
        return -1;
    unit->length = PyUnicode_GetLength(text);
    unit->is_name = strcmp(unit->kind, "label") == 0 || strcmp(unit->kind, "heading") == 0;
    unit->label = add_stems(unit, label, near ? NEAR_LABEL : FAR_LABEL);
    add_stems(unit, tags, OF_TAG);
    add_stems(unit, heading, OF_HEADING);
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *reading_probabilities(ReadingObject *self, PyObject *items)
{
    PyObject *lower[MAX_UNITS] = {NULL}, *result = NULL;
    const Py_ssize_t n = PyList_Check(items) ? PyList_Size(items) : 0;
    if (n < 1 || n > MAX_UNITS)
        return PyErr_Format(PyExc_ValueError, "a list of 1 to %d units is needed", MAX_UNITS);
    Unit *units = PyMem_Malloc((size_t)n * sizeof(Unit));
    Py_ssize_t i = 0;
    while (units && i < n && read_unit(&units[i], PyList_GetItem(items, i), &lower[i]) == 0)
        i++;
    if (i == n && (result = PyList_New(n)) != NULL) {
        add_features(&self->model, units, (int)n);
        compute_probabilities(&self->model, units, (int)n);
        for (i = 0; i < n; i++)
            PyList_SetItem(result, i, Py_BuildValue("(ddd)", units[i].scores[0], units[i].scores[1], units[i].scores[2]));
    }
    for (i = 0; i < n; i++)
        Py_XDECREF(lower[i]);
    PyMem_Free(units);
    return units ? result : PyErr_NoMemory();
}

/* ------------------------------------------------------------------------------- the module; see kernel/__init__.py */

static PyMethodDef reading_methods[] = {
    {"probabilities", (PyCFunction)reading_probabilities, METH_O, "probabilities(units)\n--\n\n"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot reading_slots[] = {
    {Py_tp_new, reading_new},
    {Py_tp_dealloc, reading_dealloc},
    {Py_tp_methods, reading_methods},
    {0, NULL},
};

static PyType_Spec reading_spec = {"routers.kernel._kernel.Reading", sizeof(ReadingObject), 0, Py_TPFLAGS_DEFAULT,
                                   reading_slots};

static PyMethodDef tables_methods[] = {
    {"compute", (PyCFunction)tables_compute, METH_VARARGS, "compute(ids, bias, outputs)\n--\n\n"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot tables_slots[] = {
    {Py_tp_new, tables_new},
    {Py_tp_dealloc, tables_dealloc},
    {Py_tp_methods, tables_methods},
    {0, NULL},
};

static PyType_Spec tables_spec = {"routers.kernel._kernel.Tables", sizeof(Tables), 0, Py_TPFLAGS_DEFAULT, tables_slots};

static int exec_module(PyObject *module)
{
    PyType_Spec *specs[] = {&tables_spec, &reading_spec};
    for (int i = 0; i < 2; i++) {
        PyObject *type = PyType_FromModuleAndSpec(module, specs[i], NULL);
        if (type == NULL || PyModule_AddType(module, (PyTypeObject *)type) < 0)
            return -1;
        Py_DECREF(type);
    }
    return 0;
}

static PyMethodDef module_methods[] = {
    {"word_ids", word_ids, METH_VARARGS, "word_ids(text, cache, add)\n--\n\n"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, exec_module}, {0, NULL}};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_kernel",
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    return PyModuleDef_Init(&module);
}
