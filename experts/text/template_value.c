/* The heap of a render, and making and comparing values. */
#include "experts/text/template_value.h"
#include "experts/text/text_utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- heap ------------------------------------------------------------------------------------ */

struct bump_block {
    struct bump_block *next;
    _Alignas(16) char data[];
};
enum { BUMP_BLOCK_BYTES = 64 * 1024 };

struct scratch {
    struct buf b; /* first: a buf is its scratch */
    struct scratch *next, *next_free;
};

void rt_fail(struct rt *rt, enum err_code code, const char *fmt, ...)
{
    char msg[480];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(msg, sizeof(msg), fmt, ap);
    va_end(ap);
    rt->code = err_set(rt->e, code, "chat template, line %d: %s", rt->line, msg);
    longjmp(rt->on_error, 1);
}

void rt_raise(struct rt *rt, const char *msg, size_t len)
{
    rt->code = err_set(rt->e, ERR_INVALID, "%.*s", (int)BASE_MIN(len, (size_t)560), msg);
    longjmp(rt->on_error, 1);
}

void rt_steps(struct rt *rt, uint64_t n)
{
    rt->steps += n;
    if (rt->steps > TEMPLATE_STEPS_MAX)
        rt_fail(rt, ERR_TOO_LARGE, "stopped after %d steps", TEMPLATE_STEPS_MAX);
}

void rt_room(struct rt *rt, size_t bytes)
{
    if (bytes > TEMPLATE_MEMORY_MAX - rt->memory)
        rt_fail(rt, ERR_TOO_LARGE, "needs more than %zu MiB of memory", TEMPLATE_MEMORY_MAX >> 20);
}

static void *bump_alloc(struct rt *rt, struct bump *b, size_t bytes)
{
    if (bytes > (size_t)(b->end - b->at)) {
        size_t cap = BASE_MAX(bytes, (size_t)BUMP_BLOCK_BYTES);
        rt_room(rt, cap);
        struct bump_block *block = malloc(sizeof(*block) + cap);
        if (block == NULL)
            rt_fail(rt, ERR_NO_MEMORY, "the machine has no memory left");
        rt->memory += cap;
        block->next = b->blocks;
        b->blocks = block;
        b->at = block->data;
        b->end = block->data + cap;
    }
    void *p = b->at;
    b->at += bytes;
    return p;
}

void *rt_alloc(struct rt *rt, size_t bytes)
{
    if (bytes > TEMPLATE_MEMORY_MAX)
        rt_room(rt, bytes);
    bytes = (bytes + 15) & ~(size_t)15;
    return memset(bump_alloc(rt, &rt->objects, bytes), 0, bytes);
}

void *rt_array(struct rt *rt, size_t count, size_t elem_bytes)
{
    size_t bytes;
    if (!size_mul(count, elem_bytes, &bytes))
        bytes = SIZE_MAX;
    return rt_alloc(rt, bytes);
}

char *rt_chars(struct rt *rt, size_t bytes)
{
    return bump_alloc(rt, &rt->chars, bytes);
}

static void bump_done(struct bump *b)
{
    while (b->blocks != NULL) {
        struct bump_block *next = b->blocks->next;
        free(b->blocks);
        b->blocks = next;
    }
    b->at = b->end = NULL;
}

struct buf *rt_take_scratch(struct rt *rt)
{
    struct scratch *s = rt->scratch_free;
    if (s != NULL) {
        rt->scratch_free = s->next_free;
        return &s->b;
    }
    s = mem_alloc(sizeof(*s));
    s->next = rt->scratch;
    rt->scratch = s;
    return &s->b;
}

void rt_give_scratch(struct rt *rt, struct buf *b)
{
    struct scratch *s = (struct scratch *)b;
    buf_clear(b);
    s->next_free = rt->scratch_free;
    rt->scratch_free = s;
}

struct str *rt_give_str(struct rt *rt, struct buf *b)
{
    struct str *s = str_new(rt, b->data, b->len);
    rt_give_scratch(rt, b);
    return s;
}

void rt_done(struct rt *rt)
{
    value_json_done(rt);
    bump_done(&rt->objects);
    bump_done(&rt->chars);
    while (rt->scratch != NULL) {
        struct scratch *next = rt->scratch->next;
        buf_done(&rt->scratch->b);
        free(rt->scratch);
        rt->scratch = next;
    }
}

/* ---- strings --------------------------------------------------------------------------------- */

struct str *str_wrap(struct rt *rt, const char *data, size_t len)
{
    if (len > INT32_MAX)
        rt_fail(rt, ERR_TOO_LARGE, "a string of %zu bytes is too long", len);
    struct str *s = rt_alloc(rt, sizeof(*s));
    *s = (struct str){.data = data, .len = (uint32_t)len, .chars = STR_UNCOUNTED};
    return s;
}

struct str *str_new(struct rt *rt, const char *data, size_t len)
{
    if (len == 0)
        return str_wrap(rt, "", 0);
    char *copy = rt_chars(rt, len);
    memcpy(copy, data, len);
    return str_wrap(rt, copy, len);
}

struct str *str_slice(struct rt *rt, const struct str *s, size_t from, size_t len)
{
    struct str *part = str_wrap(rt, s->data + from, len);
    if (s->chars == s->len)
        part->chars = part->len; /* a part of ASCII is ASCII */
    part->markup = s->markup;
    return part;
}

struct str *str_concat(struct rt *rt, const struct str *a, const struct str *b)
{
    if (b->len == 0 && a->markup == b->markup)
        return str_slice(rt, a, 0, a->len);
    size_t len = (size_t)a->len + b->len;
    struct str *s;
    if (a->len > 0 && a->data + a->len == rt->chars.at &&
        b->len <= (size_t)(rt->chars.end - rt->chars.at)) {
        /* `a` was made last: it grows where it is, so building a text by `x = x + y` is linear. The
         * shorter string that `a` names stays as it was. */
        memcpy(rt_chars(rt, b->len), b->data, b->len);
        s = str_wrap(rt, a->data, len);
    } else {
        /* Room to grow once more, or the next `+` would copy all again. */
        size_t spare = len < 64 ? 0 : len;
        rt_room(rt, len + spare);
        char *data = rt_chars(rt, len + spare);
        memcpy(data, a->data, a->len);
        memcpy(data + a->len, b->data, b->len);
        if (data + len + spare == rt->chars.at)
            rt->chars.at -= spare;
        s = str_wrap(rt, data, len);
    }
    if (a->chars != STR_UNCOUNTED && b->chars != STR_UNCOUNTED)
        s->chars = a->chars + b->chars;
    return s;
}

struct str *str_from_buf(struct rt *rt, const struct buf *b, size_t from)
{
    return str_new(rt, b->data + from, b->len - from);
}

size_t str_chars(struct str *s)
{
    if (s->chars == STR_UNCOUNTED)
        s->chars = (uint32_t)text_utf8_count(s->data, s->len);
    return s->chars;
}

bool str_equal(const struct str *a, const struct str *b)
{
    return a == b || (a->len == b->len && memcmp(a->data, b->data, a->len) == 0);
}

bool str_is(const struct str *s, const char *text)
{
    return strlen(text) == s->len && memcmp(s->data, text, s->len) == 0;
}

struct value value_undefined_hint(struct rt *rt, const char *hint)
{
    struct undefined *u = rt_alloc(rt, sizeof(*u));
    u->hint = hint;
    return value_undefined(u);
}

/* ---- lists and dicts ------------------------------------------------------------------------- */

struct list *list_new(struct rt *rt, size_t cap)
{
    struct list *l = rt_alloc(rt, sizeof(*l));
    if (cap > UINT32_MAX)
        rt_fail(rt, ERR_TOO_LARGE, "a list of %zu items is too long", cap);
    if (cap > 0)
        l->items = rt_array(rt, cap, sizeof(*l->items));
    l->cap = (uint32_t)cap;
    return l;
}

void list_push(struct rt *rt, struct list *l, struct value v)
{
    if (l->count == l->cap) {
        uint32_t cap = l->cap == 0 ? 8 : l->cap * 2;
        struct value *items = rt_array(rt, cap, sizeof(*items));
        if (l->count > 0)
            memcpy(items, l->items, l->count * sizeof(*items));
        l->items = items;
        l->cap = cap;
    }
    l->items[l->count++] = v;
}

struct value tuple_pair(struct rt *rt, struct value a, struct value b)
{
    struct list *l = list_new(rt, 2);
    list_push(rt, l, a);
    list_push(rt, l, b);
    return value_tuple(l);
}

struct dict *dict_new(struct rt *rt, size_t cap)
{
    struct dict *d = rt_alloc(rt, sizeof(*d));
    if (cap > 0)
        d->entries = rt_array(rt, cap, sizeof(*d->entries));
    d->cap = (uint32_t)cap;
    return d;
}

static uint64_t str_hash(const struct str *s)
{
    return hash64_of(s->data, s->len, 0);
}

static void index_put(struct dict *d, uint64_t hash, uint32_t pos)
{
    uint32_t i = (uint32_t)hash & d->index_mask;
    while (d->index[i] != 0)
        i = (i + 1) & d->index_mask;
    d->index[i] = pos + 1;
}

static void dict_reindex(struct rt *rt, struct dict *d)
{
    uint32_t cap = 32;
    while (cap < d->cap * 2)
        cap *= 2;
    d->index = rt_array(rt, cap, sizeof(*d->index));
    d->index_mask = cap - 1;
    for (uint32_t i = 0; i < d->count; i++)
        index_put(d, value_hash(rt, &d->entries[i].key), i);
}

const struct value *dict_get_str(const struct dict *d, const struct str *key)
{
    if (d->index == NULL) {
        for (uint32_t i = 0; i < d->count; i++) {
            const struct dict_entry *en = &d->entries[i];
            if (en->key.kind == VALUE_STR && str_equal(en->key.str, key))
                return &en->value;
        }
        return NULL;
    }
    for (uint32_t i = (uint32_t)str_hash(key) & d->index_mask; d->index[i] != 0;
         i = (i + 1) & d->index_mask) {
        const struct dict_entry *en = &d->entries[d->index[i] - 1];
        if (en->key.kind == VALUE_STR && str_equal(en->key.str, key))
            return &en->value;
    }
    return NULL;
}

const struct value *dict_get(struct rt *rt, const struct dict *d, struct value key)
{
    if (key.kind == VALUE_STR)
        return dict_get_str(d, key.str);
    uint64_t hash = value_hash(rt, &key); /* also refuses what can be no key */
    if (d->index == NULL) {
        for (uint32_t i = 0; i < d->count; i++) {
            if (value_equal(rt, &d->entries[i].key, &key))
                return &d->entries[i].value;
        }
        return NULL;
    }
    for (uint32_t i = (uint32_t)hash & d->index_mask; d->index[i] != 0;
         i = (i + 1) & d->index_mask) {
        const struct dict_entry *en = &d->entries[d->index[i] - 1];
        if (value_equal(rt, &en->key, &key))
            return &en->value;
    }
    return NULL;
}

void dict_put(struct rt *rt, struct dict *d, struct value key, struct value v)
{
    const struct value *old = dict_get(rt, d, key);
    if (old != NULL) {
        *(struct value *)old = v; /* our own entry: dict_get only promises callers not to write */
        return;
    }
    if (d->count == d->cap) {
        uint32_t cap = d->cap == 0 ? 8 : d->cap * 2;
        struct dict_entry *entries = rt_array(rt, cap, sizeof(*entries));
        if (d->count > 0)
            memcpy(entries, d->entries, d->count * sizeof(*entries));
        d->entries = entries;
        d->cap = cap;
        d->index = NULL;
    }
    d->entries[d->count++] = (struct dict_entry){key, v};
    if (d->index != NULL)
        index_put(d, value_hash(rt, &key), d->count - 1);
    else if (d->count >= DICT_INDEX_MIN)
        dict_reindex(rt, d);
}

/* ---- Python's rules -------------------------------------------------------------------------- */

const char *value_type_name(const struct value *v)
{
    static const char *const names[] = {
        [VALUE_MISSING] = "Undefined", [VALUE_UNDEFINED] = "Undefined",
        [VALUE_NONE] = "NoneType",     [VALUE_BOOL] = "bool",
        [VALUE_INT] = "int",           [VALUE_FLOAT] = "float",
        [VALUE_STR] = "str",           [VALUE_LIST] = "list",
        [VALUE_TUPLE] = "tuple",       [VALUE_DICT] = "dict",
        [VALUE_RANGE] = "range",       [VALUE_VIEW] = "dict_items",
        [VALUE_ITER] = "generator",    [VALUE_NAMESPACE] = "Namespace",
        [VALUE_LOOP] = "LoopContext",  [VALUE_MACRO] = "Macro",
        [VALUE_FUNCTION] = "function", [VALUE_METHOD] = "builtin_function_or_method",
        [VALUE_CYCLER] = "Cycler",     [VALUE_JOINER] = "Joiner",
    };
    return names[v->kind];
}

void value_fail_undefined(struct rt *rt, const struct value *v)
{
    const struct undefined *u = v->undefined;
    if (u == NULL || (u->hint == NULL && u->name == NULL))
        rt_fail(rt, ERR_INVALID, "a value is undefined");
    if (u->hint != NULL)
        rt_fail(rt, ERR_INVALID, "%s", u->hint);
    int len = (int)BASE_MIN(u->name->len, 120u);
    if (u->owner == VALUE_MISSING)
        rt_fail(rt, ERR_INVALID, "'%.*s' is undefined", len, u->name->data);
    struct value owner = {.kind = u->owner};
    rt_fail(rt, ERR_INVALID, "'%s object' has no attribute '%.*s'", value_type_name(&owner), len,
            u->name->data);
}

bool value_length(struct value *v, int64_t *ret)
{
    switch (v->kind) {
    case VALUE_UNDEFINED:
        *ret = 0;
        return true;
    case VALUE_STR:
        *ret = (int64_t)str_chars(v->str);
        return true;
    case VALUE_LIST:
    case VALUE_TUPLE:
        *ret = v->list->count;
        return true;
    case VALUE_DICT:
        *ret = v->dict->count;
        return true;
    case VALUE_RANGE:
        *ret = v->range->count;
        return true;
    case VALUE_VIEW:
        *ret = v->view->dict->count;
        return true;
    default:
        return false;
    }
}

bool value_truthy(const struct value *v)
{
    switch (v->kind) {
    case VALUE_MISSING:
    case VALUE_UNDEFINED:
    case VALUE_NONE:
        return false;
    case VALUE_BOOL:
        return v->b;
    case VALUE_INT:
        return v->i != 0;
    case VALUE_FLOAT:
        return v->f != 0.0;
    case VALUE_STR:
        return v->str->len > 0;
    case VALUE_LIST:
    case VALUE_TUPLE:
        return v->list->count > 0;
    case VALUE_DICT:
        return v->dict->count > 0;
    case VALUE_RANGE:
        return v->range->count > 0;
    case VALUE_VIEW:
        return v->view->dict->count > 0;
    default:
        return true;
    }
}

bool value_is_number(const struct value *v)
{
    return v->kind == VALUE_INT || v->kind == VALUE_FLOAT || v->kind == VALUE_BOOL;
}

bool value_as_int(const struct value *v, int64_t *ret)
{
    if (v->kind == VALUE_INT)
        *ret = v->i;
    else if (v->kind == VALUE_BOOL)
        *ret = v->b;
    else
        return false;
    return true;
}

double value_as_float(const struct value *v)
{
    return v->kind == VALUE_FLOAT ? v->f : v->kind == VALUE_INT ? (double)v->i : (double)v->b;
}

bool value_hashable(const struct value *v)
{
    if (v->kind == VALUE_TUPLE) {
        for (uint32_t i = 0; i < v->list->count; i++) {
            if (!value_hashable(&v->list->items[i]))
                return false;
        }
    }
    return v->kind != VALUE_LIST && v->kind != VALUE_DICT && v->kind != VALUE_VIEW;
}

static uint64_t number_hash(const struct value *v)
{
    double f = value_as_float(v);
    int64_t i;
    if (v->kind == VALUE_FLOAT) {
        /* 1.0 and 1 are one key. */
        bool whole = f >= -9.0e18 && f <= 9.0e18 && f == floor(f);
        if (!whole)
            return hash64_of(&f, sizeof(f), 1);
        i = (int64_t)f;
    } else {
        (void)value_as_int(v, &i);
    }
    return hash64_of(&i, sizeof(i), 2);
}

uint64_t value_hash(struct rt *rt, const struct value *v)
{
    if (!value_hashable(v))
        rt_fail(rt, ERR_INVALID, "unhashable type: '%s'", value_type_name(v));
    if (v->kind == VALUE_STR)
        return str_hash(v->str);
    if (value_is_number(v))
        return number_hash(v);
    if (v->kind == VALUE_TUPLE) {
        rt_enter(rt);
        uint64_t h = 3;
        for (uint32_t i = 0; i < v->list->count; i++)
            h = h * 1000003u ^ value_hash(rt, &v->list->items[i]);
        rt_leave(rt);
        return h;
    }
    return (uint64_t)v->kind; /* none and undefined are one key each; the rest is rare */
}

static bool lists_equal(struct rt *rt, const struct list *a, const struct list *b)
{
    if (a->count != b->count)
        return false;
    for (uint32_t i = 0; i < a->count; i++) {
        if (!value_equal(rt, &a->items[i], &b->items[i]))
            return false;
    }
    return true;
}

static bool dicts_equal(struct rt *rt, const struct dict *a, const struct dict *b)
{
    if (a->count != b->count)
        return false;
    for (uint32_t i = 0; i < a->count; i++) {
        const struct value *other = dict_get(rt, b, a->entries[i].key);
        if (other == NULL || !value_equal(rt, &a->entries[i].value, other))
            return false;
    }
    return true;
}

static bool numbers_equal(const struct value *a, const struct value *b)
{
    int64_t x, y;
    if (value_as_int(a, &x) && value_as_int(b, &y))
        return x == y;
    return value_as_float(a) == value_as_float(b);
}

bool value_equal(struct rt *rt, const struct value *a, const struct value *b)
{
    if (value_is_number(a) && value_is_number(b))
        return numbers_equal(a, b);
    if (a->kind != b->kind)
        return false;
    bool equal;
    switch (a->kind) {
    case VALUE_UNDEFINED:
    case VALUE_NONE:
        return true;
    case VALUE_STR:
        return str_equal(a->str, b->str);
    case VALUE_LIST:
    case VALUE_TUPLE:
        rt_enter(rt);
        rt_steps(rt, 1);
        equal = lists_equal(rt, a->list, b->list);
        rt_leave(rt);
        return equal;
    case VALUE_DICT:
        rt_enter(rt);
        rt_steps(rt, 1);
        equal = dicts_equal(rt, a->dict, b->dict);
        rt_leave(rt);
        return equal;
    case VALUE_RANGE:
        return a->range->count == b->range->count &&
               (a->range->count == 0 ||
                (a->range->start == b->range->start &&
                 (a->range->count == 1 || a->range->step == b->range->step)));
    case VALUE_FUNCTION:
        return a->function == b->function;
    case VALUE_METHOD:
        return a->method == b->method;
    default:
        return a->dict == b->dict; /* identity; all others are one pointer */
    }
}

static int compare_strings(const struct str *a, const struct str *b)
{
    /* UTF-8 sorts as its code points do. */
    int c = memcmp(a->data, b->data, BASE_MIN(a->len, b->len));
    if (c != 0)
        return c < 0 ? -1 : 1;
    return a->len < b->len ? -1 : a->len > b->len;
}

static int compare_numbers(const struct value *a, const struct value *b)
{
    int64_t x, y;
    if (value_as_int(a, &x) && value_as_int(b, &y))
        return x < y ? -1 : x > y;
    double f = value_as_float(a), g = value_as_float(b);
    /* NaN is neither: 2 says so to whoever asks for < or >. */
    return f < g ? -1 : f > g ? 1 : f == g ? 0 : 2;
}

int value_compare(struct rt *rt, const struct value *a, const struct value *b, const char *op)
{
    if (value_is_number(a) && value_is_number(b))
        return compare_numbers(a, b);
    if (a->kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, a);
    if (b->kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, b);
    if (a->kind == VALUE_STR && b->kind == VALUE_STR)
        return compare_strings(a->str, b->str);
    if (a->kind != b->kind || (a->kind != VALUE_LIST && a->kind != VALUE_TUPLE))
        rt_fail(rt, ERR_INVALID, "'%s' not supported between instances of '%s' and '%s'", op,
                value_type_name(a), value_type_name(b));
    rt_enter(rt);
    rt_steps(rt, 1);
    const struct list *x = a->list, *y = b->list;
    int c = 0;
    for (uint32_t i = 0; i < x->count && i < y->count && c == 0; i++) {
        if (!value_equal(rt, &x->items[i], &y->items[i]))
            c = value_compare(rt, &x->items[i], &y->items[i], op);
    }
    if (c == 0)
        c = x->count < y->count ? -1 : x->count > y->count;
    rt_leave(rt);
    return c;
}
