/* The str methods that ask about characters, the methods of containers, and the lookup of all. */
#include "experts/text/template_priv.h"
#include "experts/text/text_utf8.h"

#include <string.h>
#include <utf8proc.h>

/* ---- str: questions -------------------------------------------------------------------------- */

static utf8proc_category_t category(uint32_t cp)
{
    return utf8proc_category((utf8proc_int32_t)cp);
}

static bool is_letter(uint32_t cp)
{
    utf8proc_category_t c = category(cp);
    return c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LL || c == UTF8PROC_CATEGORY_LT ||
           c == UTF8PROC_CATEGORY_LM || c == UTF8PROC_CATEGORY_LO;
}

static bool is_decimal(uint32_t cp)
{
    return category(cp) == UTF8PROC_CATEGORY_ND;
}

/* Superscripts and circled numbers are digits in Python too, but not decimal ones. */
static bool is_digit(uint32_t cp)
{
    return is_decimal(cp) || cp == 0xB2 || cp == 0xB3 || cp == 0xB9 || cp == 0x2070 ||
           (cp >= 0x2074 && cp <= 0x2079) || (cp >= 0x2080 && cp <= 0x2089) ||
           (cp >= 0x2460 && cp <= 0x2468) || (cp >= 0x2474 && cp <= 0x247C) ||
           (cp >= 0x2488 && cp <= 0x2490);
}

static bool is_numeric(uint32_t cp)
{
    utf8proc_category_t c = category(cp);
    return c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
}

static bool is_alnum(uint32_t cp)
{
    return is_letter(cp) || is_numeric(cp);
}

static struct value all_are(struct rt *rt, struct value self, const struct args *a,
                            bool (*is)(uint32_t cp))
{
    args_bind(rt, a, "a question about a string", "", 0, NULL);
    const struct str *s = self.str;
    for (size_t pos = 0, step; pos < s->len; pos += step) {
        if (!is(text_utf8_get(s->data + pos, &step)))
            return value_bool(false);
    }
    return value_bool(s->len > 0);
}

static struct value m_isalnum(struct rt *rt, struct value self, const struct args *a)
{
    return all_are(rt, self, a, is_alnum);
}

static struct value m_isalpha(struct rt *rt, struct value self, const struct args *a)
{
    return all_are(rt, self, a, is_letter);
}

static struct value m_isdecimal(struct rt *rt, struct value self, const struct args *a)
{
    return all_are(rt, self, a, is_decimal);
}

static struct value m_isdigit(struct rt *rt, struct value self, const struct args *a)
{
    return all_are(rt, self, a, is_digit);
}

static struct value m_isnumeric(struct rt *rt, struct value self, const struct args *a)
{
    return all_are(rt, self, a, is_numeric);
}

static struct value m_isspace(struct rt *rt, struct value self, const struct args *a)
{
    return all_are(rt, self, a, text_is_space);
}

static struct value m_isprintable(struct rt *rt, struct value self, const struct args *a)
{
    struct value v = all_are(rt, self, a, text_is_printable);
    return value_bool(v.b || self.str->len == 0);
}

static struct value m_isascii(struct rt *rt, struct value self, const struct args *a)
{
    args_bind(rt, a, "isascii", "", 0, NULL);
    return value_bool(str_ascii(self.str));
}

static struct value m_isidentifier(struct rt *rt, struct value self, const struct args *a)
{
    struct value v = all_are(rt, self, a, text_is_word);
    return value_bool(v.b && !is_numeric(text_utf8_get(self.str->data, &(size_t){0})));
}

static struct value m_islower(struct rt *rt, struct value self, const struct args *a)
{
    args_bind(rt, a, "islower", "", 0, NULL);
    return value_bool(str_is_lower(self.str));
}

static struct value m_isupper(struct rt *rt, struct value self, const struct args *a)
{
    args_bind(rt, a, "isupper", "", 0, NULL);
    return value_bool(str_is_upper(self.str));
}

static struct value m_istitle(struct rt *rt, struct value self, const struct args *a)
{
    args_bind(rt, a, "istitle", "", 0, NULL);
    return value_bool(str_is_title(self.str));
}

const struct method_def methods_str_test[] = {
    {"isalnum", m_isalnum},
    {"isalpha", m_isalpha},
    {"isascii", m_isascii},
    {"isdecimal", m_isdecimal},
    {"isdigit", m_isdigit},
    {"isidentifier", m_isidentifier},
    {"islower", m_islower},
    {"isnumeric", m_isnumeric},
    {"isprintable", m_isprintable},
    {"isspace", m_isspace},
    {"istitle", m_istitle},
    {"isupper", m_isupper},
    {NULL, NULL},
};

/* ---- dict ------------------------------------------------------------------------------------ */

static struct value view_of(struct rt *rt, struct value self, const struct args *a,
                            enum view_kind kind, const char *what)
{
    args_bind(rt, a, what, "", 0, NULL);
    struct view *v = rt_alloc(rt, sizeof(*v));
    *v = (struct view){self.dict, kind};
    return (struct value){.kind = VALUE_VIEW, .view = v};
}

static struct value m_keys(struct rt *rt, struct value self, const struct args *a)
{
    return view_of(rt, self, a, VIEW_KEYS, "keys");
}

static struct value m_values(struct rt *rt, struct value self, const struct args *a)
{
    return view_of(rt, self, a, VIEW_VALUES, "values");
}

static struct value m_items(struct rt *rt, struct value self, const struct args *a)
{
    return view_of(rt, self, a, VIEW_ITEMS, "items");
}

static struct value m_get(struct rt *rt, struct value self, const struct args *a)
{
    struct value v[2];
    args_bind(rt, a, "get", "key default", 1, v);
    const struct value *at = dict_get(rt, self.dict, v[0]);
    if (at != NULL)
        return *at;
    return v[1].kind == VALUE_MISSING ? value_none() : v[1];
}

static struct value m_dict_copy(struct rt *rt, struct value self, const struct args *a)
{
    args_bind(rt, a, "copy", "", 0, NULL);
    struct dict *d = dict_new(rt, self.dict->count);
    for (uint32_t i = 0; i < self.dict->count; i++)
        dict_put(rt, d, self.dict->entries[i].key, self.dict->entries[i].value);
    return value_dict(d);
}

static const struct method_def methods_dict[] = {
    {"copy", m_dict_copy}, {"get", m_get},       {"items", m_items},
    {"keys", m_keys},      {"values", m_values}, {NULL, NULL},
};

/* ---- list, tuple, range, cycler -------------------------------------------------------------- */

static struct value m_seq_count(struct rt *rt, struct value self, const struct args *a)
{
    struct value v, item;
    int64_t n = 0;
    args_bind(rt, a, "count", "value", 1, &v);
    struct iter *it = iter_of(rt, self);
    while (iter_next(rt, it, &item))
        n += value_equal(rt, &item, &v);
    return value_int(n);
}

static struct value m_seq_index(struct rt *rt, struct value self, const struct args *a)
{
    struct value v[3];
    int64_t count = 0, at = 0;
    args_bind(rt, a, "index", "value start stop", 1, v);
    (void)value_length(&self, &count);
    int64_t from = arg_int(rt, &v[1], 0, "index"), to = arg_int(rt, &v[2], count, "index");
    from = from < 0 ? from + count : from;
    to = to < 0 ? to + count : to;
    struct iter *it = iter_of(rt, self);
    for (struct value item; iter_next(rt, it, &item); at++) {
        if (at >= from && at < to && value_equal(rt, &item, &v[0]))
            return value_int(at);
    }
    rt_fail(rt, ERR_INVALID, "the value is not in the %s", value_type_name(&self));
}

static struct value m_list_copy(struct rt *rt, struct value self, const struct args *a)
{
    args_bind(rt, a, "copy", "", 0, NULL);
    return value_list(list_of(rt, self));
}

static const struct method_def methods_list[] = {
    {"copy", m_list_copy}, {"count", m_seq_count}, {"index", m_seq_index}, {NULL, NULL}};
static const struct method_def methods_tuple[] = {
    {"count", m_seq_count}, {"index", m_seq_index}, {NULL, NULL}};

static struct value m_cycler_next(struct rt *rt, struct value self, const struct args *a)
{
    struct cycler *c = self.cycler;
    args_bind(rt, a, "next", "", 0, NULL);
    struct value v = c->items->items[c->pos];
    c->pos = (c->pos + 1) % c->items->count;
    return v;
}

static struct value m_cycler_reset(struct rt *rt, struct value self, const struct args *a)
{
    args_bind(rt, a, "reset", "", 0, NULL);
    self.cycler->pos = 0;
    return value_none();
}

static const struct method_def methods_cycler[] = {
    {"next", m_cycler_next}, {"reset", m_cycler_reset}, {NULL, NULL}};

/* ---- lookup ---------------------------------------------------------------------------------- */

static const struct method_def *find_in(const struct method_def *table, const struct str *name)
{
    for (; table->name != NULL; table++) {
        if (str_is(name, table->name))
            return table;
    }
    return NULL;
}

/* Attributes that Python's objects have and these have not: refused aloud, because "undefined"
 * would be a wrong answer that nobody sees. */
static void refuse_known(struct rt *rt, const struct value *self, const struct str *name)
{
    static const struct {
        enum value_kind kind;
        const char *names; /* with a blank around each */
    } known[] = {
        {VALUE_STR, " encode maketrans translate "},
        {VALUE_DICT, " fromkeys "},
        {VALUE_INT, " as_integer_ratio bit_count bit_length conjugate denominator from_bytes imag "
                    "numerator real to_bytes "},
        {VALUE_BOOL, " as_integer_ratio bit_count bit_length conjugate denominator from_bytes imag "
                     "numerator real to_bytes "},
        {VALUE_FLOAT, " as_integer_ratio conjugate fromhex hex imag is_integer real "},
        {VALUE_VIEW, " isdisjoint mapping "},
        {VALUE_ITER, " close send throw "},
    };
    char word[40];
    if (name->len > 30)
        return;
    (void)snprintf(word, sizeof(word), " %.*s ", (int)name->len, name->data);
    for (size_t i = 0; i < BASE_COUNT(known); i++) {
        if (known[i].kind == self->kind && strstr(known[i].names, word) != NULL)
            rt_fail(rt, ERR_UNSUPPORTED, "the attribute '%.*s' of '%s' objects is not supported",
                    (int)name->len, name->data, value_type_name(self));
    }
}

const struct method_def *method_find(struct rt *rt, const struct value *self,
                                     const struct str *name)
{
    const struct method_def *def = NULL;
    switch (self->kind) {
    case VALUE_STR:
        def = find_in(methods_str, name);
        if (def == NULL)
            def = find_in(methods_str_test, name);
        break;
    case VALUE_DICT:
        def = find_in(methods_dict, name);
        break;
    case VALUE_LIST:
        def = find_in(methods_list, name);
        break;
    case VALUE_TUPLE:
    case VALUE_RANGE:
        def = find_in(methods_tuple, name);
        break;
    case VALUE_CYCLER:
        def = find_in(methods_cycler, name);
        break;
    default:
        break;
    }
    if (def == NULL && name->len > 0)
        refuse_known(rt, self, name);
    return def;
}
