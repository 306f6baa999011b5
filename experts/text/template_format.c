/* Python's two ways to format: the % operator and str.format(), with the common part of both: a
 * number or a string under a specification of width, sign, precision and kind. */
#include "experts/text/template_priv.h"
#include "experts/text/text_utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH_MAX = 100000, PRECISION_MAX = 500 };

struct spec {
    char fill[4];
    size_t fill_len;
    char align; /* < > = ^, '\0' = the kind's default */
    char sign;  /* + - or blank, '\0' = - */
    bool alt;
    int64_t width;
    char group;        /* , or _, '\0' = none */
    int64_t precision; /* -1 = none */
    char kind;         /* '\0' = none */
};

/* ---- padding --------------------------------------------------------------------------------- */

static void fill(struct buf *out, const struct spec *s, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        buf_append(out, s->fill, s->fill_len);
}

/* `sign` stands in front of the padding where the alignment is '='. */
static void put_padded(struct rt *rt, const struct spec *s, const char *sign, const char *body,
                       size_t len, char align, struct buf *out)
{
    int64_t chars = (int64_t)(strlen(sign) + text_utf8_count(body, len));
    int64_t room = s->width > chars ? s->width - chars : 0;
    if (s->align != '\0')
        align = s->align;
    int64_t left = align == '<' || align == '=' ? 0 : align == '^' ? room / 2 : room;
    rt_room(rt, out->len + len + (size_t)room * s->fill_len);
    fill(out, s, left);
    buf_puts(out, sign);
    if (align == '=')
        fill(out, s, room);
    buf_append(out, body, len);
    if (align == '<' || align == '^')
        fill(out, s, room - left);
}

/* ---- numbers --------------------------------------------------------------------------------- */

static const char *sign_of(const struct spec *s, bool negative)
{
    return negative ? "-" : s->sign == '+' ? "+" : s->sign == ' ' ? " " : "";
}

/* Thousands separators into the whole part of a number's text. */
static void group_digits(const char *digits, char sep, int every, struct buf *out)
{
    size_t whole = strspn(digits, "0123456789abcdefABCDEF");
    for (size_t i = 0; i < whole; i++) {
        if (i > 0 && (whole - i) % (size_t)every == 0)
            buf_append(out, &sep, 1);
        buf_append(out, digits + i, 1);
    }
    buf_puts(out, digits + whole);
}

static void int_digits(uint64_t u, int base, bool upper, char out[72])
{
    char rev[72];
    size_t n = 0;
    do {
        rev[n++] = (upper ? "0123456789ABCDEF" : "0123456789abcdef")[u % (unsigned)base];
        u /= (unsigned)base;
    } while (u != 0);
    for (size_t i = 0; i < n; i++)
        out[i] = rev[n - 1 - i];
    out[n] = '\0';
}

static void put_number(struct rt *rt, const struct spec *s, bool negative, const char *prefix,
                       const char *digits, int every, struct buf *out)
{
    char sign[8];
    (void)snprintf(sign, sizeof(sign), "%s%s", sign_of(s, negative), prefix);
    struct buf *body = rt_take_scratch(rt);
    if (s->group != '\0')
        group_digits(digits, s->group, every, body);
    else
        buf_puts(body, digits);
    put_padded(rt, s, sign, body->data, body->len, '>', out);
    rt_give_scratch(rt, body);
}

static void format_int(struct rt *rt, int64_t i, const struct spec *s, struct buf *out)
{
    char kind = s->kind;
    if (kind == 'c') {
        char utf8[4];
        if (i < 0 || i > 0x10FFFF || (i >= 0xD800 && i < 0xE000))
            rt_fail(rt, ERR_INVALID, "%%c needs a character's number");
        put_padded(rt, s, "", utf8, utf8_encode((uint32_t)i, utf8), '<', out);
        return;
    }
    int base = kind == 'x' || kind == 'X' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 10;
    char digits[72], prefix[3] = "";
    int_digits(i < 0 ? 0 - (uint64_t)i : (uint64_t)i, base, kind == 'X', digits);
    if (s->alt && base != 10)
        (void)snprintf(prefix, sizeof(prefix), "0%c", kind);
    put_number(rt, s, i < 0, prefix, digits, base == 10 ? 3 : 4, out);
}

/* "1.00e+02" -> "1e+02" */
static void strip_mantissa(char *text)
{
    char *exp = strchr(text, 'e'), *end = exp;
    if (strchr(text, '.') == NULL)
        return;
    while (end[-1] == '0')
        end--;
    if (end[-1] == '.')
        end--;
    memmove(end, exp, strlen(exp) + 1);
}

/* Precision without a kind: as %g, but never without a point. */
static void general_digits(double f, int64_t precision, char *out, size_t cap)
{
    (void)snprintf(out, cap, "%.*g", (int)BASE_MAX(precision, (int64_t)1), f);
    if (strpbrk(out, ".en") == NULL) {
        /* Python leaves positional notation one digit earlier than C does. */
        if ((int64_t)strlen(out) >= precision) {
            (void)snprintf(out, cap, "%.*e", (int)BASE_MAX(precision - 1, (int64_t)0), f);
            strip_mantissa(out);
        } else {
            (void)strcat(out, ".0");
        }
    }
}

static void format_float(struct rt *rt, double f, const struct spec *s, struct buf *out)
{
    char digits[900], c_format[8] = "%.*";
    bool negative = signbit(f) && !isnan(f);
    double size = fabs(f);
    int64_t precision = s->precision < 0 ? 6 : s->precision;
    char kind = s->kind == 'n' ? 'g' : s->kind;
    if (!isfinite(f)) {
        bool upper = kind == 'E' || kind == 'F' || kind == 'G';
        (void)strcpy(digits, isnan(f) ? (upper ? "NAN" : "nan") : (upper ? "INF" : "inf"));
    } else if (kind == '\0' && s->precision < 0) {
        float_repr(size, digits);
    } else if (kind == '\0') {
        general_digits(size, s->precision, digits, sizeof(digits));
    } else {
        size_t n = strlen(c_format);
        if (s->alt) {
            (void)strcpy(c_format, "%#.*");
            n++;
        }
        c_format[n] = kind == '%' ? 'f' : kind;
        c_format[n + 1] = '\0';
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        (void)snprintf(digits, sizeof(digits), c_format, (int)precision,
                       kind == '%' ? size * 100.0 : size);
#pragma GCC diagnostic pop
    }
    if (kind == '%')
        (void)strcat(digits, "%");
    put_number(rt, s, negative, "", digits, 3, out);
}

static void format_string(struct rt *rt, const struct str *text, const struct spec *s,
                          struct buf *out)
{
    size_t len = text->len;
    if (s->precision >= 0)
        len = text_utf8_offset(text->data, text->len, (size_t)s->precision);
    put_padded(rt, s, "", text->data, len, '<', out);
}

/* ---- str.format() ---------------------------------------------------------------------------- */

static int64_t take_number(struct rt *rt, const char *text, size_t len, size_t *pos, int64_t max)
{
    int64_t n = 0;
    while (*pos < len && text[*pos] >= '0' && text[*pos] <= '9') {
        n = n * 10 + (text[(*pos)++] - '0');
        if (n > max)
            rt_fail(rt, ERR_UNSUPPORTED, "a width or precision beyond %lld is not supported",
                    (long long)max);
    }
    return n;
}

static bool is_align(char c)
{
    return c == '<' || c == '>' || c == '=' || c == '^';
}

static bool take_char(const struct str *s, size_t *pos, const char *any, char *ret)
{
    if (*pos >= s->len || s->data[*pos] == '\0' || strchr(any, s->data[*pos]) == NULL)
        return false;
    *ret = s->data[(*pos)++];
    return true;
}

static struct spec parse_spec(struct rt *rt, const struct str *text)
{
    struct spec s = {.fill = " ", .fill_len = 1, .precision = -1};
    size_t pos = 0, step = text->len > 0 ? text_utf8_step(text->data[0]) : 0;
    char ignored;
    if (text->len > step && is_align(text->data[step])) {
        memcpy(s.fill, text->data, step);
        s.fill_len = step;
        s.align = text->data[step];
        pos = step + 1;
    } else if (take_char(text, &pos, "<>=^", &s.align)) {
        /* the blank stays */
    }
    (void)take_char(text, &pos, "+- ", &s.sign);
    s.alt = take_char(text, &pos, "#", &ignored);
    if (take_char(text, &pos, "0", &ignored) && s.align == '\0') {
        s.fill[0] = '0';
        s.align = '=';
    }
    s.width = take_number(rt, text->data, text->len, &pos, WIDTH_MAX);
    (void)take_char(text, &pos, ",_", &s.group);
    if (take_char(text, &pos, ".", &ignored))
        s.precision = take_number(rt, text->data, text->len, &pos, PRECISION_MAX);
    (void)take_char(text, &pos, "bcdeEfFgGnosxX%", &s.kind);
    if (pos != text->len)
        rt_fail(rt, ERR_INVALID, "invalid format specifier '%.*s'", (int)BASE_MIN(text->len, 60u),
                text->data);
    return s;
}

static void refuse_kind(struct rt *rt, const struct spec *s, const struct value *v,
                        const char *allowed)
{
    if (s->kind != '\0' && strchr(allowed, s->kind) == NULL)
        rt_fail(rt, ERR_INVALID, "unknown format code '%c' for object of type '%s'", s->kind,
                value_type_name(v));
}

/* format(v, text) */
static void format_value(struct rt *rt, struct value v, const struct str *text, struct buf *out)
{
    int64_t i;
    if (text->len == 0) {
        value_print(rt, &v, out);
        return;
    }
    struct spec s = parse_spec(rt, text);
    if (v.kind == VALUE_STR) {
        refuse_kind(rt, &s, &v, "s");
        if (s.align == '=' && s.fill[0] == '0')
            s.align = '<';
        format_string(rt, v.str, &s, out);
    } else if (v.kind == VALUE_FLOAT ||
               (value_as_int(&v, &i) && s.kind != '\0' && strchr("eEfFgG%", s.kind) != NULL)) {
        refuse_kind(rt, &s, &v, "eEfFgGn%");
        format_float(rt, value_as_float(&v), &s, out);
    } else if (value_as_int(&v, &i)) {
        refuse_kind(rt, &s, &v, "bcdnoxX");
        format_int(rt, i, &s, out);
    } else {
        rt_fail(rt, ERR_INVALID, "unsupported format string passed to %s.__format__",
                value_type_name(&v));
    }
}

struct formatter {
    const struct args *args;
    int64_t next; /* automatic numbering; -1 once a field had a number */
};

static struct value field_root(struct rt *rt, struct formatter *f, const char *name, size_t len)
{
    size_t pos = 0;
    int64_t index = len == 0 ? f->next++ : take_number(rt, name, len, &pos, WIDTH_MAX);
    if (pos == len) {
        if (index < 0 || index >= f->args->count)
            rt_fail(rt, ERR_INVALID, "format: index %lld is out of range", (long long)index);
        return f->args->items[index];
    }
    for (uint32_t i = 0; i < f->args->named_count; i++) {
        const struct named *n = &f->args->named[i];
        if (n->name->len == len && memcmp(n->name->data, name, len) == 0)
            return n->value;
    }
    rt_fail(rt, ERR_INVALID, "format: there is no argument '%.*s'", (int)BASE_MIN(len, (size_t)60),
            name);
}

/* "name.attr[key]" */
static struct value field_value(struct rt *rt, struct formatter *f, const char *text, size_t len)
{
    size_t pos = 0;
    while (pos < len && text[pos] != '.' && text[pos] != '[')
        pos++;
    struct value v = field_root(rt, f, text, pos);
    while (pos < len) {
        bool item = text[pos++] == '[';
        size_t from = pos, digits = 0;
        while (pos < len && (item ? text[pos] != ']' : text[pos] != '.' && text[pos] != '['))
            pos++;
        if (item && pos == len)
            rt_fail(rt, ERR_INVALID, "format: expected ']' before the end of the field");
        struct str *key = str_new(rt, text + from, pos - from);
        int64_t index = take_number(rt, key->data, key->len, &digits, INT32_MAX);
        if (item)
            v = get_item(rt, v,
                         digits > 0 && digits == key->len ? value_int(index) : value_str(key));
        else
            v = get_attr(rt, v, key);
        pos += item;
    }
    return v;
}

static struct str *format_text(struct rt *rt, struct formatter *f, const char *text, size_t len,
                               unsigned level);

/* The inside of one pair of braces: name, !conversion, :specification. */
static void format_field(struct rt *rt, struct formatter *f, const char *text, size_t len,
                         unsigned level, struct buf *out)
{
    size_t name = 0, bracket = 0;
    while (name < len && (bracket > 0 || (text[name] != '!' && text[name] != ':'))) {
        bracket += text[name] == '[';
        bracket -= bracket > 0 && text[name] == ']';
        name++;
    }
    struct value v = field_value(rt, f, text, name);
    size_t pos = name;
    if (pos < len && text[pos] == '!') {
        char how = pos + 1 < len ? text[pos + 1] : '\0';
        struct buf *b = rt_take_scratch(rt);
        if (how == 'r')
            value_repr(rt, &v, b);
        else if (how == 's')
            value_print(rt, &v, b);
        else
            rt_fail(rt, ERR_UNSUPPORTED, "format: conversion '!%c' is not supported", how);
        v = value_str(rt_give_str(rt, b));
        pos += 2;
    }
    if (pos < len && text[pos] != ':')
        rt_fail(rt, ERR_INVALID, "format: expected ':' after the conversion");
    pos = BASE_MIN(pos + 1, len);
    format_value(rt, v, format_text(rt, f, text + pos, len - pos, level + 1), out);
}

/* End of the field that begins at `pos`, behind its brace. */
static size_t field_end(struct rt *rt, const char *text, size_t len, size_t pos)
{
    unsigned open = 1;
    for (; pos < len; pos++) {
        open += text[pos] == '{';
        open -= text[pos] == '}';
        if (open == 0)
            return pos;
    }
    rt_fail(rt, ERR_INVALID, "format: single '{' encountered");
}

static struct str *format_text(struct rt *rt, struct formatter *f, const char *text, size_t len,
                               unsigned level)
{
    if (level > 2)
        rt_fail(rt, ERR_INVALID, "format: fields are nested too deeply");
    struct buf *out = rt_take_scratch(rt);
    for (size_t pos = 0; pos < len;) {
        char c = text[pos];
        bool twice = pos + 1 < len && text[pos + 1] == c;
        if ((c == '{' || c == '}') && twice && level == 0) {
            buf_append(out, &c, 1);
            pos += 2;
        } else if (c == '{') {
            size_t end = field_end(rt, text, len, pos + 1);
            rt_steps(rt, 1);
            rt_room(rt, out->len);
            format_field(rt, f, text + pos + 1, end - pos - 1, level, out);
            pos = end + 1;
        } else if (c == '}') {
            rt_fail(rt, ERR_INVALID, "format: single '}' encountered");
        } else {
            buf_append(out, &c, 1);
            pos++;
        }
    }
    return rt_give_str(rt, out);
}

/* Markup escapes what is put into it, by rules of its own. */
static void refuse_markup(struct rt *rt, const struct str *s)
{
    if (s->markup)
        rt_fail(rt, ERR_UNSUPPORTED, "formatting a string marked safe is not supported");
}

struct str *str_format(struct rt *rt, struct str *s, const struct args *a)
{
    refuse_markup(rt, s);
    struct formatter f = {.args = a};
    return format_text(rt, &f, s->data, s->len, 0);
}

/* ---- the % operator -------------------------------------------------------------------------- */

struct percent {
    struct str *format;
    size_t pos;
    struct value args;
    uint32_t used;
};

static struct value percent_next(struct rt *rt, struct percent *p)
{
    bool tuple = p->args.kind == VALUE_TUPLE;
    if (p->used >= (tuple ? p->args.list->count : 1))
        rt_fail(rt, ERR_INVALID, "not enough arguments for format string");
    p->used++;
    return tuple ? p->args.list->items[p->used - 1] : p->args;
}

/* "%(name)": the value under that key. */
static bool percent_key(struct rt *rt, struct percent *p, struct value *ret)
{
    const struct str *f = p->format;
    if (p->pos >= f->len || f->data[p->pos] != '(')
        return false;
    const char *end = memchr(f->data + p->pos, ')', f->len - p->pos);
    if (p->args.kind != VALUE_DICT || end == NULL)
        rt_fail(rt, ERR_INVALID, "format requires a mapping");
    size_t from = p->pos + 1, to = (size_t)(end - f->data);
    const struct value *v = dict_get_str(p->args.dict, str_wrap(rt, f->data + from, to - from));
    if (v == NULL)
        rt_fail(rt, ERR_INVALID, "format: there is no key '%.*s'",
                (int)BASE_MIN(to - from, (size_t)60), f->data + from);
    p->pos = to + 1;
    *ret = *v;
    return true;
}

static int64_t percent_number(struct rt *rt, struct percent *p, struct spec *s, bool is_width)
{
    const struct str *f = p->format;
    if (p->pos >= f->len || f->data[p->pos] != '*')
        return take_number(rt, f->data, f->len, &p->pos, is_width ? WIDTH_MAX : PRECISION_MAX);
    p->pos++;
    struct value v = percent_next(rt, p);
    int64_t n = arg_int(rt, &v, 0, "* in a format");
    if (is_width && n < 0)
        s->align = '<';
    n = n < 0 ? (is_width ? -n : 0) : n;
    if (n > (is_width ? WIDTH_MAX : PRECISION_MAX))
        rt_fail(rt, ERR_UNSUPPORTED, "a width or precision this large is not supported");
    return n;
}

static struct spec percent_spec(struct rt *rt, struct percent *p)
{
    struct spec s = {.fill = " ", .fill_len = 1, .precision = -1};
    const struct str *f = p->format;
    char flag, ignored;
    bool zero = false;
    while (take_char(f, &p->pos, "-+ #0", &flag)) {
        if (flag == '-')
            s.align = '<';
        else if (flag == '#')
            s.alt = true;
        else if (flag == '0')
            zero = true;
        else if (s.sign != '+')
            s.sign = flag;
    }
    s.width = percent_number(rt, p, &s, true);
    if (take_char(f, &p->pos, ".", &ignored))
        s.precision = percent_number(rt, p, &s, false);
    (void)take_char(f, &p->pos, "hlL", &ignored);
    if (p->pos >= f->len)
        rt_fail(rt, ERR_INVALID, "incomplete format");
    s.kind = f->data[p->pos++];
    if (zero && s.align == '\0' && strchr("srac", s.kind) == NULL) {
        s.fill[0] = '0';
        s.align = '=';
    }
    return s;
}

static void percent_text(struct rt *rt, struct spec *s, struct value v, struct buf *out)
{
    struct str *text;
    if (s->kind == 'r') {
        struct buf *b = rt_take_scratch(rt);
        value_repr(rt, &v, b);
        text = rt_give_str(rt, b);
    } else {
        text = value_to_str(rt, &v);
    }
    format_string(rt, text,
                  &(struct spec){.fill = " ",
                                 .fill_len = 1,
                                 .width = s->width,
                                 .precision = s->precision,
                                 .align = s->align == '<' ? '<' : '>'},
                  out);
}

static void percent_char(struct rt *rt, struct spec *s, struct value v, struct buf *out)
{
    if (s->align == '\0')
        s->align = '>';
    s->precision = -1;
    int64_t i;
    if (v.kind == VALUE_STR && str_chars(v.str) == 1)
        format_string(rt, v.str, s, out);
    else if (value_as_int(&v, &i))
        format_int(rt, i, s, out);
    else
        rt_fail(rt, ERR_INVALID, "%%c requires int or char");
}

static void percent_int(struct rt *rt, struct spec *s, struct value v, struct buf *out)
{
    int64_t i;
    bool decimal = s->kind == 'd' || s->kind == 'i' || s->kind == 'u';
    if (v.kind == VALUE_FLOAT && decimal && fabs(v.f) < 9.2e18)
        i = (int64_t)v.f;
    else if (!value_as_int(&v, &i))
        rt_fail(rt, ERR_INVALID, "%%%c format: a number is required, not %s", s->kind,
                value_type_name(&v));
    if (decimal)
        s->kind = 'd';
    char digits[72];
    int64_t precision = s->precision;
    if (precision < 0) {
        format_int(rt, i, s, out);
        return;
    }
    /* A precision is a minimum of digits. */
    int base = s->kind == 'd' ? 10 : s->kind == 'o' ? 8 : 16;
    int_digits(i < 0 ? 0 - (uint64_t)i : (uint64_t)i, base, s->kind == 'X', digits);
    struct buf *b = rt_take_scratch(rt);
    for (int64_t n = (int64_t)strlen(digits); n < precision; n++)
        buf_puts(b, "0");
    buf_puts(b, digits);
    char prefix[3] = "";
    if (s->alt && base != 10)
        (void)snprintf(prefix, sizeof(prefix), "0%c", s->kind);
    put_number(rt, s, i < 0, prefix, b->data, 3, out);
    rt_give_scratch(rt, b);
}

static void percent_one(struct rt *rt, struct percent *p, struct buf *out)
{
    struct value v;
    bool keyed = percent_key(rt, p, &v);
    struct spec s = percent_spec(rt, p);
    if (s.kind == '%') {
        buf_puts(out, "%");
        return;
    }
    if (s.kind == '\0' || strchr("diouxXeEfFgGcrsa", s.kind) == NULL)
        rt_fail(rt, ERR_INVALID, "unsupported format character '%c'",
                s.kind >= 0x20 && s.kind < 0x7F ? s.kind : '?');
    if (!keyed)
        v = percent_next(rt, p);
    if (s.kind == 'a')
        rt_fail(rt, ERR_UNSUPPORTED, "the format %%a is not supported");
    if (s.kind == 's' || s.kind == 'r')
        percent_text(rt, &s, v, out);
    else if (s.kind == 'c')
        percent_char(rt, &s, v, out);
    else if (strchr("diouxX", s.kind) != NULL)
        percent_int(rt, &s, v, out);
    else if (value_is_number(&v))
        format_float(rt, value_as_float(&v), &s, out);
    else
        rt_fail(rt, ERR_INVALID, "must be real number, not %s", value_type_name(&v));
}

struct str *str_percent(struct rt *rt, struct str *s, struct value args)
{
    refuse_markup(rt, s);
    struct percent p = {.format = s, .args = args};
    struct buf *out = rt_take_scratch(rt);
    while (p.pos < s->len) {
        const char *at = memchr(s->data + p.pos, '%', s->len - p.pos);
        size_t to = at == NULL ? s->len : (size_t)(at - s->data);
        buf_append(out, s->data + p.pos, to - p.pos);
        p.pos = to;
        if (at != NULL) {
            rt_steps(rt, 1);
            rt_room(rt, out->len);
            p.pos++;
            percent_one(rt, &p, out);
        }
    }
    uint32_t have = args.kind == VALUE_TUPLE ? args.list->count
                    : args.kind == VALUE_DICT || args.kind == VALUE_LIST ||
                            args.kind == VALUE_RANGE || args.kind == VALUE_UNDEFINED
                        ? 0 /* has a subscript: Python takes it for a mapping */
                        : 1;
    if (p.used < have)
        rt_fail(rt, ERR_INVALID, "not all arguments converted during string formatting");
    return rt_give_str(rt, out);
}
