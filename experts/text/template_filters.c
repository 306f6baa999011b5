/* Filters on single values: text, numbers, JSON. Each does what Jinja's built-in filter of the name
 * does with autoescape off. */
#include "experts/text/template_priv.h"
#include "experts/text/text_utf8.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void no_args(struct rt *rt, const struct args *a, const char *what)
{
    args_bind(rt, a, what, "", 0, NULL);
}

/* ---- text ------------------------------------------------------------------------------------ */

/* What was marked safe stays so. */
static struct value change_case(struct rt *rt, struct value in, const struct args *a,
                                enum text_case how)
{
    no_args(rt, a, "a filter that changes case");
    struct str *s = value_to_str(rt, &in);
    return str_as(rt, str_case(rt, s, how), s->markup);
}

static struct value f_upper(struct rt *rt, struct value in, const struct args *a)
{
    return change_case(rt, in, a, CASE_UPPER);
}

static struct value f_lower(struct rt *rt, struct value in, const struct args *a)
{
    return change_case(rt, in, a, CASE_LOWER);
}

static struct value f_capitalize(struct rt *rt, struct value in, const struct args *a)
{
    return change_case(rt, in, a, CASE_CAPITALIZE);
}

/* Words begin behind -, white space and opening brackets; unlike str.title(), not behind '. */
static struct value f_title(struct rt *rt, struct value in, const struct args *a)
{
    no_args(rt, a, "title");
    struct str *s = value_to_str(rt, &in);
    struct buf *b = rt_take_scratch(rt);
    bool begins = true;
    size_t from = 0;
    for (size_t pos = 0, step = 1; pos <= s->len; pos += step) {
        uint32_t cp = pos < s->len ? text_utf8_get(s->data + pos, &step) : ' ';
        bool splits =
            text_is_space(cp) || cp == '-' || cp == '(' || cp == '{' || cp == '[' || cp == '<';
        if (!splits && begins)
            from = pos;
        if (splits && !begins) {
            size_t head = text_utf8_step(s->data[from]);
            const struct str *first = str_case(rt, str_slice(rt, s, from, head), CASE_UPPER);
            const struct str *rest =
                str_case(rt, str_slice(rt, s, from + head, pos - from - head), CASE_LOWER);
            buf_append(b, first->data, first->len);
            buf_append(b, rest->data, rest->len);
        }
        if (splits && pos < s->len)
            buf_append(b, s->data + pos, step);
        begins = splits;
    }
    return value_str(rt_give_str(rt, b));
}

static struct value f_trim(struct rt *rt, struct value in, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "trim", "chars", 0, &v);
    struct str *chars = arg_chars(rt, &v, "trim");
    return value_str(str_strip(rt, value_to_str(rt, &in), chars, 0));
}

static struct value f_string(struct rt *rt, struct value in, const struct args *a)
{
    no_args(rt, a, "string");
    return value_str(value_to_str(rt, &in));
}

static struct value f_safe(struct rt *rt, struct value in, const struct args *a)
{
    no_args(rt, a, "safe");
    return str_as(rt, value_to_str(rt, &in), true);
}

static struct value f_escape(struct rt *rt, struct value in, const struct args *a)
{
    no_args(rt, a, "escape");
    struct str *s = value_to_str(rt, &in);
    return s->markup ? value_str(s) : str_as(rt, str_escape_html(rt, s), true);
}

static struct value f_forceescape(struct rt *rt, struct value in, const struct args *a)
{
    no_args(rt, a, "forceescape");
    return str_as(rt, str_escape_html(rt, value_to_str(rt, &in)), true);
}

static struct value f_replace(struct rt *rt, struct value in, const struct args *a)
{
    struct value v[3];
    args_bind(rt, a, "replace", "old new count", 2, v);
    int64_t count = v[2].kind == VALUE_NONE ? -1 : arg_int(rt, &v[2], -1, "replace");
    return value_str(str_replace(rt, value_to_str(rt, &in), value_to_str(rt, &v[0]),
                                 value_to_str(rt, &v[1]), count));
}

static struct value f_format(struct rt *rt, struct value in, const struct args *a)
{
    struct value arg;
    if (a->count > 0 && a->named_count > 0)
        rt_fail(rt, ERR_INVALID, "format takes positional or keyword arguments, not both");
    if (a->named_count > 0) {
        struct dict *d = dict_new(rt, a->named_count);
        for (uint32_t i = 0; i < a->named_count; i++) {
            const struct str *name = a->named[i].name;
            dict_put(rt, d, value_str(str_wrap(rt, name->data, name->len)), a->named[i].value);
        }
        arg = value_dict(d);
    } else {
        struct list *l = list_new(rt, a->count);
        for (uint32_t i = 0; i < a->count; i++)
            list_push(rt, l, a->items[i]);
        arg = value_tuple(l);
    }
    return value_str(str_percent(rt, value_to_str(rt, &in), arg));
}

/* Blanks, or the string itself, that lines are indented by. */
static struct str *indention(struct rt *rt, struct value *v)
{
    if (v->kind == VALUE_STR)
        return v->str;
    int64_t width = arg_int(rt, v, 4, "indent");
    if (width < 0)
        width = 0;
    rt_room(rt, (size_t)width);
    char *blanks = rt_chars(rt, (size_t)width);
    memset(blanks, ' ', (size_t)width);
    return str_wrap(rt, blanks, (size_t)width);
}

static struct value f_indent(struct rt *rt, struct value in, const struct args *a)
{
    struct value v[3];
    args_bind(rt, a, "indent", "width first blank", 0, v);
    struct str *by = indention(rt, &v[0]);
    bool first = arg_bool(&v[1], false), blank = arg_bool(&v[2], false);
    struct str *s = arg_str(rt, &in, NULL, "indent");
    /* Jinja adds a newline before it splits: a text that ends in one keeps an empty last line. */
    struct list *lines = str_split_lines(rt, str_concat(rt, s, str_wrap(rt, "\n", 1)), false);
    struct buf *b = rt_take_scratch(rt);
    for (uint32_t i = 0; i < lines->count; i++) {
        const struct str *line = lines->items[i].str;
        rt_room(rt, b->len + by->len);
        if (i > 0)
            buf_puts(b, "\n");
        if (i == 0 ? first : blank || line->len > 0)
            buf_append(b, by->data, by->len);
        buf_append(b, line->data, line->len);
    }
    return str_as(rt, rt_give_str(rt, b), s->markup);
}

static struct value f_center(struct rt *rt, struct value in, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "center", "width", 0, &v);
    struct value width = value_int(arg_int(rt, &v, 80, "center"));
    struct value self = value_str(value_to_str(rt, &in));
    struct str name = {.data = "center", .len = 6, .chars = 6};
    struct args one = {.items = &width, .count = 1};
    return method_find(rt, &self, &name)->fn(rt, self, &one);
}

static struct str *first_chars(struct rt *rt, struct str *s, int64_t n)
{
    struct value bounds[3] = {value_none(), value_int(n), value_none()};
    return get_slice(rt, value_str(s), bounds).str;
}

static struct value f_truncate(struct rt *rt, struct value in, const struct args *a)
{
    struct value v[4];
    args_bind(rt, a, "truncate", "length killwords end leeway", 0, v);
    struct str *end = arg_str(rt, &v[2], str_wrap(rt, "...", 3), "truncate");
    int64_t length = arg_int(rt, &v[0], 255, "truncate"), have;
    int64_t leeway = v[3].kind == VALUE_NONE ? 5 : arg_int(rt, &v[3], 5, "truncate");
    int64_t end_chars = (int64_t)str_chars(end);
    if (length < end_chars || leeway < 0)
        rt_fail(rt, ERR_INVALID, "truncate: the length must hold the end mark, and leeway be >= 0");
    /* Whatever has a length may be short enough. */
    if (value_length(&in, &have) && have <= length + BASE_MIN(leeway, (int64_t)INT32_MAX))
        return in;
    struct str *s = arg_str(rt, &in, NULL, "truncate");
    struct str *head = first_chars(rt, s, length - end_chars);
    if (!arg_bool(&v[1], false)) {
        const char *space = memrchr(head->data, ' ', head->len);
        if (space != NULL)
            head = str_slice(rt, head, 0, (size_t)(space - head->data));
    }
    return value_str(str_concat(rt, head, end));
}

static struct value f_wordcount(struct rt *rt, struct value in, const struct args *a)
{
    no_args(rt, a, "wordcount");
    const struct str *s = value_to_str(rt, &in);
    int64_t words = 0;
    bool inside = false;
    for (size_t pos = 0, step; pos < s->len; pos += step) {
        bool word = text_is_word(text_utf8_get(s->data + pos, &step));
        words += word && !inside;
        inside = word;
    }
    return value_int(words);
}

static void url_quote(struct rt *rt, struct value v, bool query, struct buf *b)
{
    const struct str *s = value_to_str(rt, &v);
    for (uint32_t i = 0; i < s->len; i++) {
        unsigned char c = (unsigned char)s->data[i];
        if (isalnum(c) || (c != 0 && strchr("_.-~", c) != NULL) || (c == '/' && !query))
            buf_append(b, &s->data[i], 1);
        else if (c == ' ' && query)
            buf_puts(b, "+");
        else
            buf_printf(b, "%%%02X", c);
    }
}

static struct value f_urlencode(struct rt *rt, struct value in, const struct args *a)
{
    no_args(rt, a, "urlencode");
    struct buf *b = rt_take_scratch(rt);
    if (in.kind == VALUE_STR || !value_iterable(&in)) {
        url_quote(rt, in, false, b);
        return value_str(rt_give_str(rt, b));
    }
    struct iter *it;
    if (in.kind == VALUE_DICT) {
        struct view *items = rt_alloc(rt, sizeof(*items));
        *items = (struct view){in.dict, VIEW_ITEMS};
        it = iter_of(rt, (struct value){.kind = VALUE_VIEW, .view = items});
    } else {
        it = iter_of(rt, in);
    }
    struct value item;
    while (iter_next(rt, it, &item)) {
        struct list *pair = list_of(rt, item);
        if (pair->count != 2)
            rt_fail(rt, ERR_INVALID, "urlencode needs pairs of a key and a value");
        if (b->len > 0)
            buf_puts(b, "&");
        url_quote(rt, pair->items[0], true, b);
        buf_puts(b, "=");
        url_quote(rt, pair->items[1], true, b);
    }
    return value_str(rt_give_str(rt, b));
}

static struct value f_striptags(struct rt *rt, struct value in, const struct args *a)
{
    no_args(rt, a, "striptags");
    const struct str *s = value_to_str(rt, &in);
    struct buf *b = rt_take_scratch(rt);
    for (size_t pos = 0; pos < s->len;) {
        bool comment = s->len - pos >= 4 && memcmp(s->data + pos, "<!--", 4) == 0;
        const char *end = NULL;
        if (s->data[pos] == '<')
            end = comment ? memmem(s->data + pos, s->len - pos, "-->", 3)
                          : memchr(s->data + pos, '>', s->len - pos);
        if (end != NULL) {
            pos = (size_t)(end - s->data) + (comment ? 3 : 1);
        } else {
            buf_append(b, s->data + pos, 1);
            pos++;
        }
    }
    /* Runs of white space become one blank. */
    struct str *bare = rt_give_str(rt, b);
    b = rt_take_scratch(rt);
    for (size_t pos = 0, step; pos < bare->len; pos += step) {
        if (!text_is_space(text_utf8_get(bare->data + pos, &step)))
            buf_append(b, bare->data + pos, step);
        else if (b->len > 0 && b->data[b->len - 1] != ' ')
            buf_puts(b, " ");
    }
    return value_str(str_strip(rt, rt_give_str(rt, b), NULL, 0));
}

/* ---- numbers --------------------------------------------------------------------------------- */

static struct value f_abs(struct rt *rt, struct value in, const struct args *a)
{
    no_args(rt, a, "abs");
    int64_t i;
    if (in.kind == VALUE_FLOAT)
        return value_float(fabs(in.f));
    if (in.kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, &in);
    if (!value_as_int(&in, &i))
        rt_fail(rt, ERR_INVALID, "bad operand type for abs(): '%s'", value_type_name(&in));
    return i < 0 ? op_negate(rt, value_int(i)) : value_int(i);
}

/* Python's int(text, base): blanks around, a sign, single underscores, a prefix if base allows. */
static bool parse_int(struct rt *rt, struct str *s, int64_t base, int64_t *ret)
{
    s = str_strip(rt, s, NULL, 0);
    char digits[80];
    size_t n = 0;
    if (s->len == 0 || s->len >= sizeof(digits) || base < 0 || base == 1 || base > 36)
        return false;
    for (uint32_t i = 0; i < s->len; i++) {
        bool joins = s->data[i] == '_' && i > 0 && i + 1 < s->len && s->data[i + 1] != '_' &&
                     isalnum((unsigned char)s->data[i - 1]);
        if (!joins)
            digits[n++] = s->data[i];
    }
    digits[n] = '\0';
    char *p = digits + (digits[0] == '+' || digits[0] == '-'), *end;
    if (!isalnum((unsigned char)*p))
        return false;
    char mark = p[0] == '0' ? (char)tolower((unsigned char)p[1]) : '\0';
    int64_t marked = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
    if (marked != 0 && (base == marked || base == 0) && isalnum((unsigned char)p[2])) {
        memmove(p, p + 2, strlen(p + 2) + 1);
        base = marked;
    } else if (base == 0) {
        base = 10;
    }
    errno = 0;
    *ret = strtoll(digits, &end, (int)base);
    if (errno == ERANGE)
        rt_fail(rt, ERR_UNSUPPORTED, "a number beyond 64 bits is not supported");
    return *end == '\0';
}

/* Python's float(text). strtod knows more (hexadecimal, "nan(...)"): only what Python reads. */
static bool parse_float(struct rt *rt, struct str *s, double *ret)
{
    s = str_strip(rt, s, NULL, 0);
    char text[128];
    size_t n = 0;
    if (s->len == 0 || s->len >= sizeof(text))
        return false;
    for (uint32_t i = 0; i < s->len; i++) {
        bool joins = s->data[i] == '_' && i > 0 && isdigit((unsigned char)s->data[i - 1]) &&
                     i + 1 < s->len && isdigit((unsigned char)s->data[i + 1]);
        if (!joins)
            text[n++] = (char)tolower((unsigned char)s->data[i]);
    }
    text[n] = '\0';
    const char *p = text + (text[0] == '+' || text[0] == '-');
    bool word = strcmp(p, "inf") == 0 || strcmp(p, "infinity") == 0 || strcmp(p, "nan") == 0;
    if (!word && strspn(p, "0123456789.e+-") != strlen(p))
        return false;
    char *end;
    *ret = strtod(text, &end);
    return *end == '\0' && end != text;
}

static bool to_int(struct rt *rt, double f, int64_t *ret)
{
    if (isnan(f) || isinf(f))
        return false;
    if (f < -9.2e18 || f > 9.2e18)
        rt_fail(rt, ERR_UNSUPPORTED, "a number beyond 64 bits is not supported");
    *ret = (int64_t)f;
    return true;
}

static struct value f_int(struct rt *rt, struct value in, const struct args *a)
{
    struct value v[2];
    args_bind(rt, a, "int", "default base", 0, v);
    struct value dflt = v[0].kind == VALUE_MISSING ? value_int(0) : v[0];
    int64_t i;
    double f;
    if (value_as_int(&in, &i))
        return value_int(i);
    if (in.kind == VALUE_FLOAT)
        return to_int(rt, in.f, &i) ? value_int(i) : dflt;
    if (in.kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, &in);
    if (in.kind != VALUE_STR)
        return dflt;
    if (parse_int(rt, in.str, arg_int(rt, &v[1], 10, "int"), &i))
        return value_int(i);
    return parse_float(rt, in.str, &f) && to_int(rt, f, &i) ? value_int(i) : dflt;
}

static struct value f_float(struct rt *rt, struct value in, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "float", "default", 0, &v);
    struct value dflt = v.kind == VALUE_MISSING ? value_float(0.0) : v;
    double f;
    if (value_is_number(&in))
        return value_float(value_as_float(&in));
    if (in.kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, &in);
    return in.kind == VALUE_STR && parse_float(rt, in.str, &f) ? value_float(f) : dflt;
}

/* round(): correctly rounded in decimal, ties to even, as printf does it. */
static double round_decimal(double f, int64_t precision)
{
    if (!isfinite(f) || precision > 300)
        return f;
    if (precision >= 0) {
        char text[700];
        (void)snprintf(text, sizeof(text), "%.*f", (int)precision, f);
        return strtod(text, NULL);
    }
    if (precision < -308)
        return copysign(0.0, f);
    double unit = pow(10.0, (double)-precision);
    return nearbyint(f / unit) * unit;
}

static struct value round_int(struct rt *rt, int64_t i, int64_t precision)
{
    if (precision >= 0)
        return value_int(i);
    if (precision < -18)
        return value_int(0);
    int64_t unit = 1;
    for (int64_t k = 0; k > precision; k--)
        unit *= 10;
    int64_t rest = ((i % unit) + unit) % unit, down = i - rest;
    bool up = rest > unit - rest || (rest == unit - rest && (down / unit) % 2 != 0);
    return op_binary(rt, '+', value_int(down), value_int(up ? unit : 0));
}

static struct value f_round(struct rt *rt, struct value in, const struct args *a)
{
    struct value v[2];
    args_bind(rt, a, "round", "precision method", 0, v);
    int64_t precision = arg_int(rt, &v[0], 0, "round"), i;
    struct str *method = arg_str(rt, &v[1], str_wrap(rt, "common", 6), "round");
    bool up = str_is(method, "ceil"), down = str_is(method, "floor");
    if (!up && !down && !str_is(method, "common"))
        rt_fail(rt, ERR_INVALID, "round: method must be common, ceil or floor");
    if (in.kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, &in);
    if (!value_is_number(&in))
        rt_fail(rt, ERR_INVALID, "type %s can not be rounded", value_type_name(&in));
    if (!up && !down)
        return value_as_int(&in, &i) ? round_int(rt, i, precision)
                                     : value_float(round_decimal(in.f, precision));
    double unit = pow(10.0, (double)precision), f = value_as_float(&in) * unit;
    return value_float((up ? ceil(f) : floor(f)) / unit);
}

static struct value f_filesizeformat(struct rt *rt, struct value in, const struct args *a)
{
    static const char *const units[2][8] = {
        {"kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"},
        {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"}};
    struct value v;
    args_bind(rt, a, "filesizeformat", "binary", 0, &v);
    bool binary = arg_bool(&v, false);
    double bytes, base = binary ? 1024.0 : 1000.0;
    if (value_is_number(&in))
        bytes = value_as_float(&in);
    else if (in.kind != VALUE_STR || !parse_float(rt, in.str, &bytes))
        rt_fail(rt, ERR_INVALID, "filesizeformat needs a number");
    char text[64];
    if (bytes == 1.0) {
        (void)snprintf(text, sizeof(text), "1 Byte");
    } else if (bytes < base) {
        (void)snprintf(text, sizeof(text), "%.0f Bytes", trunc(bytes));
    } else {
        size_t i = 0;
        double unit = base * base;
        while (i < 7 && bytes >= unit) {
            unit *= base;
            i++;
        }
        (void)snprintf(text, sizeof(text), "%.1f %s", base * bytes / unit, units[binary][i]);
    }
    return value_str(str_new(rt, text, strlen(text)));
}

/* ---- JSON ------------------------------------------------------------------------------------ */

enum { INDENT_MAX = 64 };

static const char *c_string(struct rt *rt, const struct str *s)
{
    char *copy = rt_chars(rt, (size_t)s->len + 1);
    memcpy(copy, s->data, s->len);
    copy[s->len] = '\0';
    return copy;
}

static const char *json_indent(struct rt *rt, const struct value *v)
{
    if (v->kind == VALUE_MISSING || v->kind == VALUE_NONE)
        return NULL;
    if (v->kind == VALUE_STR && v->str->len <= INDENT_MAX)
        return c_string(rt, v->str);
    int64_t n = BASE_MAX(arg_int(rt, v, 0, "tojson: indent"), (int64_t)0);
    if (n > INDENT_MAX)
        rt_fail(rt, ERR_UNSUPPORTED, "tojson: an indent of more than %d is not supported",
                INDENT_MAX);
    char *blanks = rt_chars(rt, (size_t)n + 1);
    memset(blanks, ' ', (size_t)n);
    blanks[n] = '\0';
    return blanks;
}

static struct value f_tojson(struct rt *rt, struct value in, const struct args *a)
{
    struct value v[4];
    args_bind(rt, a, "tojson", "ensure_ascii indent separators sort_keys", 0, v);
    struct json_style style = {.item_sep = ", ",
                               .key_sep = ": ",
                               .indent = json_indent(rt, &v[1]),
                               .ensure_ascii = arg_bool(&v[0], false),
                               .sort_keys = arg_bool(&v[3], false)};
    if (style.indent != NULL)
        style.item_sep = ",";
    if (v[2].kind != VALUE_MISSING && v[2].kind != VALUE_NONE) {
        struct list *pair = list_of(rt, v[2]);
        if (pair->count != 2)
            rt_fail(rt, ERR_INVALID, "tojson: separators must be two strings");
        style.item_sep = c_string(rt, arg_str(rt, &pair->items[0], NULL, "tojson: separators"));
        style.key_sep = c_string(rt, arg_str(rt, &pair->items[1], NULL, "tojson: separators"));
    }
    struct buf *b = rt_take_scratch(rt);
    value_to_json(rt, &in, &style, b);
    return value_str(rt_give_str(rt, b));
}

/* ---- others ---------------------------------------------------------------------------------- */

static struct value f_default(struct rt *rt, struct value in, const struct args *a)
{
    struct value v[2];
    args_bind(rt, a, "default", "default_value boolean", 0, v);
    bool replace = in.kind == VALUE_UNDEFINED || (arg_bool(&v[1], false) && !value_truthy(&in));
    if (!replace)
        return in;
    return v[0].kind == VALUE_MISSING ? value_str(str_wrap(rt, "", 0)) : v[0];
}

/* Attributes only, never keys: of a dict its methods. */
static struct value f_attr(struct rt *rt, struct value in, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "attr", "name", 1, &v);
    struct str *name = arg_str(rt, &v, NULL, "attr");
    if (in.kind == VALUE_DICT &&
        (name->len == 0 || name->data[0] == '_' || method_find(rt, &in, name) == NULL))
        return value_undefined_hint(rt, "the object has no attribute of this name");
    return get_attr(rt, in, name);
}

const struct filter_def filters_text[] = {
    {"abs", f_abs},
    {"attr", f_attr},
    {"capitalize", f_capitalize},
    {"center", f_center},
    {"d", f_default},
    {"default", f_default},
    {"e", f_escape},
    {"escape", f_escape},
    {"filesizeformat", f_filesizeformat},
    {"float", f_float},
    {"forceescape", f_forceescape},
    {"format", f_format},
    {"indent", f_indent},
    {"int", f_int},
    {"lower", f_lower},
    {"replace", f_replace},
    {"round", f_round},
    {"safe", f_safe},
    {"string", f_string},
    {"striptags", f_striptags},
    {"title", f_title},
    {"tojson", f_tojson},
    {"trim", f_trim},
    {"truncate", f_truncate},
    {"upper", f_upper},
    {"urlencode", f_urlencode},
    {"wordcount", f_wordcount},
    {NULL, NULL},
};
