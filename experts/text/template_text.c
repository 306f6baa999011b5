/* Values as text: Python's str() and repr(), and json.dumps as chat templates call it. */
#include "experts/text/template_priv.h"
#include "experts/text/text_utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* What is built is bounded while it is built: a value that shares parts prints exponentially. */
static void check_room(struct rt *rt, const struct buf *out)
{
    rt_steps(rt, 1);
    if (out->len > TEMPLATE_OUTPUT_MAX * 2)
        rt_fail(rt, ERR_TOO_LARGE, "prints more than %zu MiB", (TEMPLATE_OUTPUT_MAX * 2) >> 20);
}

/* ---- numbers --------------------------------------------------------------------------------- */

/* Digits and exponent of the shortest decimal that reads back as f: d.ddd x 10^exp. */
static int shortest_digits(double f, char digits[20], int *ret_exp)
{
    char text[40];
    for (int prec = 0; prec < 17; prec++) {
        (void)snprintf(text, sizeof(text), "%.*e", prec, f);
        if (strtod(text, NULL) == f)
            break;
    }
    int n = 0;
    const char *p = text;
    for (; *p != 'e'; p++) {
        if (*p >= '0' && *p <= '9')
            digits[n++] = *p;
    }
    *ret_exp = atoi(p + 1);
    return n;
}

void float_repr(double f, char out[32])
{
    if (isnan(f)) {
        (void)strcpy(out, "nan");
        return;
    }
    char *o = out;
    if (signbit(f))
        *o++ = '-';
    f = fabs(f);
    if (isinf(f)) {
        (void)strcpy(o, "inf");
        return;
    }
    char digits[20] = "0";
    int exp = 0, n = shortest_digits(f, digits, &exp);
    if (exp >= -4 && exp < 16) {
        int point = exp + 1; /* digits in front of the point */
        if (point <= 0) {
            *o++ = '0';
            *o++ = '.';
            for (int i = point; i < 0; i++)
                *o++ = '0';
        }
        for (int i = 0; i < n || i < point; i++) {
            if (i == point && point > 0)
                *o++ = '.';
            *o++ = i < n ? digits[i] : '0';
        }
        if (n <= point) {
            *o++ = '.';
            *o++ = '0';
        }
        *o = '\0';
        return;
    }
    *o++ = digits[0];
    if (n > 1) {
        *o++ = '.';
        memcpy(o, digits + 1, (size_t)n - 1);
        o += n - 1;
    }
    (void)sprintf(o, "e%c%02d", exp < 0 ? '-' : '+', abs(exp));
}

/* ---- repr ------------------------------------------------------------------------------------ */

/* str.isprintable() of one character. */
bool text_is_printable(uint32_t cp)
{
    if (cp < 0x7F)
        return cp >= 0x20;
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

static void repr_char(struct buf *out, const char *s, size_t step, uint32_t cp, char quote)
{
    if (cp == (unsigned char)quote || cp == '\\')
        buf_printf(out, "\\%c", (char)cp);
    else if (cp == '\n')
        buf_puts(out, "\\n");
    else if (cp == '\r')
        buf_puts(out, "\\r");
    else if (cp == '\t')
        buf_puts(out, "\\t");
    else if (text_is_printable(cp))
        buf_append(out, s, step);
    else if (cp < 0x100)
        buf_printf(out, "\\x%02x", cp);
    else if (cp < 0x10000)
        buf_printf(out, "\\u%04x", cp);
    else
        buf_printf(out, "\\U%08x", cp);
}

static void repr_str(const struct str *s, struct buf *out)
{
    bool single = memchr(s->data, '\'', s->len) != NULL;
    bool twice = memchr(s->data, '"', s->len) != NULL;
    char quote = single && !twice ? '"' : '\'';
    if (s->markup)
        buf_puts(out, "Markup(");
    buf_append(out, &quote, 1);
    for (size_t pos = 0; pos < s->len;) {
        size_t step;
        uint32_t cp = text_utf8_get(s->data + pos, &step);
        repr_char(out, s->data + pos, step, cp, quote);
        pos += step;
    }
    buf_append(out, &quote, 1);
    if (s->markup)
        buf_puts(out, ")");
}

static void repr_items(struct rt *rt, const struct list *l, const char *open, const char *close,
                       struct buf *out)
{
    buf_puts(out, open);
    for (uint32_t i = 0; i < l->count; i++) {
        if (i > 0)
            buf_puts(out, ", ");
        value_repr(rt, &l->items[i], out);
    }
    buf_puts(out, close);
}

static void repr_dict(struct rt *rt, const struct dict *d, struct buf *out)
{
    buf_puts(out, "{");
    for (uint32_t i = 0; i < d->count; i++) {
        if (i > 0)
            buf_puts(out, ", ");
        value_repr(rt, &d->entries[i].key, out);
        buf_puts(out, ": ");
        value_repr(rt, &d->entries[i].value, out);
    }
    buf_puts(out, "}");
}

static void repr_view(struct rt *rt, const struct view *v, struct buf *out)
{
    static const char *const names[] = {"dict_keys([", "dict_values([", "dict_items(["};
    buf_puts(out, names[v->kind]);
    for (uint32_t i = 0; i < v->dict->count; i++) {
        const struct dict_entry *en = &v->dict->entries[i];
        if (i > 0)
            buf_puts(out, ", ");
        if (v->kind == VIEW_ITEMS)
            buf_puts(out, "(");
        if (v->kind != VIEW_VALUES)
            value_repr(rt, &en->key, out);
        if (v->kind == VIEW_ITEMS)
            buf_puts(out, ", ");
        if (v->kind != VIEW_KEYS)
            value_repr(rt, &en->value, out);
        if (v->kind == VIEW_ITEMS)
            buf_puts(out, ")");
    }
    buf_puts(out, "])");
}

static void repr_range(const struct range *r, struct buf *out)
{
    buf_printf(out, "range(%lld, %lld", (long long)r->start, (long long)r->stop);
    if (r->step != 1)
        buf_printf(out, ", %lld", (long long)r->step);
    buf_puts(out, ")");
}

/* Objects, whose repr in Python has an address in it: any text will do, but never a secret. */
static void repr_object(struct rt *rt, const struct value *v, struct buf *out)
{
    switch (v->kind) {
    case VALUE_ITER:
        buf_printf(out, "<generator object %s>", v->iter->name);
        return;
    case VALUE_NAMESPACE:
        buf_puts(out, "<Namespace ");
        repr_dict(rt, v->dict, out);
        buf_puts(out, ">");
        return;
    case VALUE_LOOP:
        loop_repr(rt, v->loop, out);
        return;
    case VALUE_MACRO:
        macro_repr(v->macro, out);
        return;
    case VALUE_FUNCTION:
        buf_printf(out, "<function %s>", global_name(v->function));
        return;
    case VALUE_METHOD:
        buf_printf(out, "<built-in method %s of %s object>", v->method->def->name,
                   value_type_name(&v->method->self));
        return;
    default:
        buf_printf(out, "<%s object>", value_type_name(v));
    }
}

void value_repr(struct rt *rt, const struct value *v, struct buf *out)
{
    char number[32];
    check_room(rt, out);
    rt_enter(rt);
    switch (v->kind) {
    case VALUE_MISSING:
    case VALUE_UNDEFINED:
        buf_puts(out, "Undefined");
        break;
    case VALUE_NONE:
        buf_puts(out, "None");
        break;
    case VALUE_BOOL:
        buf_puts(out, v->b ? "True" : "False");
        break;
    case VALUE_INT:
        buf_printf(out, "%lld", (long long)v->i);
        break;
    case VALUE_FLOAT:
        float_repr(v->f, number);
        buf_puts(out, number);
        break;
    case VALUE_STR:
        repr_str(v->str, out);
        break;
    case VALUE_LIST:
        repr_items(rt, v->list, "[", "]", out);
        break;
    case VALUE_TUPLE:
        repr_items(rt, v->list, "(", v->list->count == 1 ? ",)" : ")", out);
        break;
    case VALUE_DICT:
        repr_dict(rt, v->dict, out);
        break;
    case VALUE_VIEW:
        repr_view(rt, v->view, out);
        break;
    case VALUE_RANGE:
        repr_range(v->range, out);
        break;
    default:
        repr_object(rt, v, out);
    }
    rt_leave(rt);
}

void value_print(struct rt *rt, struct value *v, struct buf *out)
{
    if (v->kind == VALUE_STR)
        buf_append(out, v->str->data, v->str->len);
    else if (v->kind != VALUE_UNDEFINED && v->kind != VALUE_MISSING)
        value_repr(rt, v, out);
}

struct str *value_to_str(struct rt *rt, struct value *v)
{
    if (v->kind == VALUE_STR)
        return v->str;
    struct buf *b = rt_take_scratch(rt);
    value_print(rt, v, b);
    return rt_give_str(rt, b);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static void json_escape(const struct str *s, bool ensure_ascii, struct buf *out)
{
    buf_append(out, "\"", 1);
    size_t from = 0;
    for (size_t pos = 0; pos < s->len;) {
        unsigned char c = (unsigned char)s->data[pos];
        if (c >= 0x20 && c != '"' && c != '\\' && (c < 0x80 || !ensure_ascii)) {
            pos++;
            continue;
        }
        buf_append(out, s->data + from, pos - from);
        size_t step;
        uint32_t cp = text_utf8_get(s->data + pos, &step);
        static const char named[] = {
            ['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r'};
        if (cp == '"' || cp == '\\')
            buf_printf(out, "\\%c", (char)cp);
        else if (cp < sizeof(named) && named[cp] != 0)
            buf_printf(out, "\\%c", named[cp]);
        else if (cp < 0x10000)
            buf_printf(out, "\\u%04x", cp);
        else
            buf_printf(out, "\\u%04x\\u%04x", 0xD800 + ((cp - 0x10000) >> 10),
                       0xDC00 + ((cp - 0x10000) & 0x3FF));
        pos += step;
        from = pos;
    }
    buf_append(out, s->data + from, s->len - from);
    buf_append(out, "\"", 1);
}

static void json_float(double f, struct buf *out)
{
    char text[32];
    if (isnan(f)) {
        buf_puts(out, "NaN");
    } else if (isinf(f)) {
        buf_puts(out, f < 0 ? "-Infinity" : "Infinity");
    } else {
        float_repr(f, text);
        buf_puts(out, text);
    }
}

static void json_newline(const struct json_style *style, unsigned level, struct buf *out)
{
    if (style->indent == NULL)
        return;
    buf_puts(out, "\n");
    for (unsigned i = 0; i < level; i++)
        buf_puts(out, style->indent);
}

static void json_value(struct rt *rt, const struct value *v, const struct json_style *style,
                       unsigned level, struct buf *out);

static void json_list(struct rt *rt, const struct list *l, const struct json_style *style,
                      unsigned level, struct buf *out)
{
    if (l->count == 0) {
        buf_puts(out, "[]");
        return;
    }
    buf_puts(out, "[");
    for (uint32_t i = 0; i < l->count; i++) {
        if (i > 0)
            buf_puts(out, style->item_sep);
        json_newline(style, level + 1, out);
        json_value(rt, &l->items[i], style, level + 1, out);
    }
    json_newline(style, level, out);
    buf_puts(out, "]");
}

/* Keys that are no strings become the text json.dumps gives them. */
static void json_key(struct rt *rt, const struct value *key, const struct json_style *style,
                     struct buf *out)
{
    if (key->kind == VALUE_STR) {
        json_escape(key->str, style->ensure_ascii, out);
        return;
    }
    if (!value_is_number(key) && key->kind != VALUE_NONE)
        rt_fail(rt, ERR_INVALID, "keys must be str, int, float, bool or None, not %s",
                value_type_name(key));
    buf_puts(out, "\"");
    json_value(rt, key, style, 0, out);
    buf_puts(out, "\"");
}

/* Positions of the entries, in the order to print them. */
static const uint32_t *json_order(struct rt *rt, const struct dict *d)
{
    struct list *keys = list_new(rt, d->count);
    for (uint32_t i = 0; i < d->count; i++)
        list_push(rt, keys, d->entries[i].key);
    return sort_order(rt, keys, false);
}

static void json_dict(struct rt *rt, const struct dict *d, const struct json_style *style,
                      unsigned level, struct buf *out)
{
    if (d->count == 0) {
        buf_puts(out, "{}");
        return;
    }
    const uint32_t *order = style->sort_keys ? json_order(rt, d) : NULL;
    buf_puts(out, "{");
    for (uint32_t i = 0; i < d->count; i++) {
        const struct dict_entry *en = &d->entries[order != NULL ? order[i] : i];
        if (i > 0)
            buf_puts(out, style->item_sep);
        json_newline(style, level + 1, out);
        json_key(rt, &en->key, style, out);
        buf_puts(out, style->key_sep);
        json_value(rt, &en->value, style, level + 1, out);
    }
    json_newline(style, level, out);
    buf_puts(out, "}");
}

static void json_value(struct rt *rt, const struct value *v, const struct json_style *style,
                       unsigned level, struct buf *out)
{
    check_room(rt, out);
    rt_enter(rt);
    switch (v->kind) {
    case VALUE_NONE:
        buf_puts(out, "null");
        break;
    case VALUE_BOOL:
        buf_puts(out, v->b ? "true" : "false");
        break;
    case VALUE_INT:
        buf_printf(out, "%lld", (long long)v->i);
        break;
    case VALUE_FLOAT:
        json_float(v->f, out);
        break;
    case VALUE_STR:
        json_escape(v->str, style->ensure_ascii, out);
        break;
    case VALUE_LIST:
    case VALUE_TUPLE:
        json_list(rt, v->list, style, level, out);
        break;
    case VALUE_DICT:
        json_dict(rt, v->dict, style, level, out);
        break;
    default:
        rt_fail(rt, ERR_INVALID, "an object of type %s can not be written as JSON",
                value_type_name(v));
    }
    rt_leave(rt);
}

void value_to_json(struct rt *rt, const struct value *v, const struct json_style *style,
                   struct buf *out)
{
    json_value(rt, v, style, 0, out);
}
