/* Binding arguments to parameters, and the global functions of the chat environment. */
#include "experts/text/template_priv.h"

#include <string.h>
#include <time.h>

/* ---- binding --------------------------------------------------------------------------------- */

/* Position of `name` in the words of `params`, -1 = none; *ret_count their number. */
static int param_index(const char *params, const struct str *name, uint32_t *ret_count)
{
    int found = -1;
    uint32_t count = 0;
    for (const char *p = params; *p != '\0'; count++) {
        size_t len = strcspn(p, " ");
        if (name != NULL && name->len == len && memcmp(name->data, p, len) == 0)
            found = (int)count;
        p += len;
        p += strspn(p, " ");
    }
    *ret_count = count;
    return found;
}

void args_bind(struct rt *rt, const struct args *a, const char *what, const char *params,
               uint32_t required, struct value *ret)
{
    uint32_t count;
    (void)param_index(params, NULL, &count);
    if (a->count > count)
        rt_fail(rt, ERR_INVALID, "%s takes %u argument(s), but %u were given", what, count,
                a->count);
    for (uint32_t i = 0; i < count; i++)
        ret[i] = i < a->count ? a->items[i] : (struct value){.kind = VALUE_MISSING};
    for (uint32_t i = 0; i < a->named_count; i++) {
        const struct str *name = a->named[i].name;
        int at = param_index(params, name, &count);
        if (at < 0)
            rt_fail(rt, ERR_INVALID, "%s has no argument '%.*s'", what,
                    (int)BASE_MIN(name->len, 60u), name->data);
        if (ret[at].kind != VALUE_MISSING)
            rt_fail(rt, ERR_INVALID, "%s got two values for '%.*s'", what, (int)name->len,
                    name->data);
        ret[at] = a->named[i].value;
    }
    for (uint32_t i = 0; i < required; i++) {
        if (ret[i].kind == VALUE_MISSING)
            rt_fail(rt, ERR_INVALID, "%s needs at least %u argument(s)", what, required);
    }
}

int64_t arg_int(struct rt *rt, const struct value *v, int64_t otherwise, const char *what)
{
    int64_t i;
    if (v->kind == VALUE_MISSING)
        return otherwise;
    if (v->kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, v);
    if (!value_as_int(v, &i))
        rt_fail(rt, ERR_INVALID, "%s needs a whole number, not %s", what, value_type_name(v));
    return i;
}

bool arg_bool(const struct value *v, bool otherwise)
{
    return v->kind == VALUE_MISSING ? otherwise : value_truthy(v);
}

struct str *arg_str(struct rt *rt, struct value *v, struct str *otherwise, const char *what)
{
    if (v->kind == VALUE_MISSING && otherwise != NULL)
        return otherwise;
    if (v->kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, v);
    if (v->kind != VALUE_STR)
        rt_fail(rt, ERR_INVALID, "%s needs a string, not %s", what, value_type_name(v));
    return v->str;
}

struct str *arg_chars(struct rt *rt, struct value *v, const char *what)
{
    if (v->kind == VALUE_MISSING || v->kind == VALUE_NONE)
        return NULL;
    return arg_str(rt, v, NULL, what);
}

/* ---- globals --------------------------------------------------------------------------------- */

static struct value fn_range(struct rt *rt, const struct args *a)
{
    struct value v[3];
    args_bind(rt, a, "range", "start stop step", 1, v);
    if (a->named_count > 0)
        rt_fail(rt, ERR_INVALID, "range takes no keyword arguments");
    struct range *r = rt_alloc(rt, sizeof(*r));
    r->start = arg_int(rt, &v[0], 0, "range");
    r->stop = arg_int(rt, &v[1], 0, "range");
    r->step = arg_int(rt, &v[2], 1, "range");
    if (a->count == 1) {
        r->stop = r->start;
        r->start = 0;
    }
    if (r->step == 0)
        rt_fail(rt, ERR_INVALID, "range() arg 3 must not be zero");
    /* In floating point: the difference of two ends may not fit; what is allowed is far smaller. */
    double count = ((double)r->stop - (double)r->start) / (double)r->step;
    if (count > TEMPLATE_RANGE_MAX)
        rt_fail(rt, ERR_INVALID, "a range of more than %d items is not allowed",
                TEMPLATE_RANGE_MAX);
    if (count > 0)
        r->count = r->step > 0 ? (r->stop - r->start - 1) / r->step + 1
                               : (r->start - r->stop - 1) / -r->step + 1;
    return (struct value){.kind = VALUE_RANGE, .range = r};
}

/* dict(mapping or pairs, **named), as Python builds one. */
static struct dict *build_dict(struct rt *rt, const struct args *a, const char *what)
{
    if (a->count > 1)
        rt_fail(rt, ERR_INVALID, "%s takes at most 1 positional argument", what);
    struct dict *d = dict_new(rt, a->named_count);
    if (a->count == 1 && a->items[0].kind == VALUE_DICT) {
        const struct dict *from = a->items[0].dict;
        for (uint32_t i = 0; i < from->count; i++)
            dict_put(rt, d, from->entries[i].key, from->entries[i].value);
    } else if (a->count == 1) {
        struct iter *it = iter_of(rt, a->items[0]);
        struct value item;
        while (iter_next(rt, it, &item)) {
            struct list *pair = list_of(rt, item);
            if (pair->count != 2)
                rt_fail(rt, ERR_INVALID, "%s needs pairs, got %u items", what, pair->count);
            dict_put(rt, d, pair->items[0], pair->items[1]);
        }
    }
    for (uint32_t i = 0; i < a->named_count; i++) {
        const struct str *name = a->named[i].name;
        dict_put(rt, d, value_str(str_wrap(rt, name->data, name->len)), a->named[i].value);
    }
    return d;
}

static struct value fn_dict(struct rt *rt, const struct args *a)
{
    return value_dict(build_dict(rt, a, "dict"));
}

static struct value fn_namespace(struct rt *rt, const struct args *a)
{
    return (struct value){.kind = VALUE_NAMESPACE, .dict = build_dict(rt, a, "namespace")};
}

static struct value fn_cycler(struct rt *rt, const struct args *a)
{
    if (a->count == 0 || a->named_count > 0)
        rt_fail(rt, ERR_INVALID, "cycler needs items to cycle through");
    struct cycler *c = rt_alloc(rt, sizeof(*c));
    c->items = list_new(rt, a->count);
    for (uint32_t i = 0; i < a->count; i++)
        list_push(rt, c->items, a->items[i]);
    return (struct value){.kind = VALUE_CYCLER, .cycler = c};
}

static struct value fn_joiner(struct rt *rt, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "joiner", "sep", 0, &v);
    struct joiner *j = rt_alloc(rt, sizeof(*j));
    j->sep = v.kind == VALUE_MISSING ? str_wrap(rt, ", ", 2) : value_to_str(rt, &v);
    return (struct value){.kind = VALUE_JOINER, .joiner = j};
}

static struct value fn_raise(struct rt *rt, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "raise_exception", "message", 1, &v);
    const struct str *s = value_to_str(rt, &v);
    rt_raise(rt, s->data, s->len);
}

/* datetime.now().strftime(): local time, as the Python chat code has it. %f is Python's own. */
struct value strftime_value(struct rt *rt, struct value format)
{
    enum { OUT_MAX = 4096 };
    struct str *s = arg_str(rt, &format, NULL, "strftime_now");
    struct buf *fmt = rt_take_scratch(rt);
    for (uint32_t i = 0; i < s->len; i++) {
        bool directive = s->data[i] == '%' && i + 1 < s->len;
        if (directive && s->data[i + 1] == 'f')
            buf_puts(fmt, "000000");
        else
            buf_append(fmt, s->data + i, directive ? 2 : 1);
        i += directive;
    }
    buf_append(fmt, "", 1); /* strftime says 0 for "nothing" and for "no room" alike */
    time_t now = (time_t)rt->now;
    struct tm tm;
    char *out = rt_chars(rt, OUT_MAX);
    if (localtime_r(&now, &tm) == NULL)
        rt_fail(rt, ERR_INVALID, "the time can not be told as a date");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    size_t n = strftime(out, OUT_MAX, fmt->data, &tm); /* a time format reads no arguments */
#pragma GCC diagnostic pop
    if (n == 0 && s->len > 0 && strlen(fmt->data) >= OUT_MAX / 16)
        rt_fail(rt, ERR_TOO_LARGE, "the format of strftime_now is too long");
    rt_give_scratch(rt, fmt);
    return value_str(str_new(rt, out, n));
}

static struct value fn_strftime(struct rt *rt, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "strftime_now", "format", 1, &v);
    return strftime_value(rt, v);
}

static const struct {
    const char *name;
    struct value (*fn)(struct rt *rt, const struct args *a);
} globals[] = {
    {"range", fn_range},           {"dict", fn_dict},     {"namespace", fn_namespace},
    {"cycler", fn_cycler},         {"joiner", fn_joiner}, {"raise_exception", fn_raise},
    {"strftime_now", fn_strftime},
};

uint32_t global_find(const char *name, size_t len)
{
    for (uint32_t i = 0; i < BASE_COUNT(globals); i++) {
        if (strlen(globals[i].name) == len && memcmp(globals[i].name, name, len) == 0)
            return i;
    }
    return GLOBAL_NONE;
}

const char *global_name(uint32_t function)
{
    return globals[function].name;
}

struct value global_call(struct rt *rt, uint32_t function, const struct args *a)
{
    return globals[function].fn(rt, a);
}
