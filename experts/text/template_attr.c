/* Attributes, subscripts and slices. Jinja's rule: `x.name` asks for an attribute of the object
 * first and for the key second, `x[key]` the other way round, and what neither finds is undefined.
 * The sandbox: names with a leading underscore, and methods that would change a list or a dict, are
 * undefined in a way that says so when they are used. */
#include "experts/text/template_priv.h"
#include "experts/text/text_utf8.h"

#include <string.h>

static struct value undefined_attr(struct rt *rt, const struct value *obj, const struct str *name)
{
    struct undefined *u = rt_alloc(rt, sizeof(*u));
    u->name = name;
    u->owner = obj->kind;
    return value_undefined(u);
}

static bool in_list(const struct str *name, const char *const *names)
{
    for (size_t i = 0; names[i] != NULL; i++) {
        if (str_is(name, names[i]))
            return true;
    }
    return false;
}

/* What the immutable sandbox keeps from templates. */
static bool is_unsafe(const struct value *obj, const struct str *name)
{
    static const char *const list_changes[] = {"append", "clear",  "pop",    "reverse", "insert",
                                               "sort",   "extend", "remove", NULL};
    static const char *const dict_changes[] = {"clear",      "pop",    "popitem",
                                               "setdefault", "update", NULL};
    if (obj->kind == VALUE_LIST)
        return in_list(name, list_changes);
    return obj->kind == VALUE_DICT && in_list(name, dict_changes);
}

static struct value unsafe_attr(struct rt *rt, const struct value *obj, const struct str *name)
{
    char *hint = rt_chars(rt, 160);
    (void)snprintf(hint, 160, "access to attribute '%.*s' of '%s' object is unsafe",
                   (int)BASE_MIN(name->len, 80u), name->data, value_type_name(obj));
    return value_undefined_hint(rt, hint);
}

static bool cycler_attr(struct rt *rt, struct value obj, const struct str *name, struct value *ret)
{
    if (!str_is(name, "current"))
        return false;
    *ret = obj.cycler->items->items[obj.cycler->pos];
    return true;
}

static bool grouped_attr(const struct value *obj, const struct str *name, struct value *ret)
{
    if (!obj->list->grouped || !(str_is(name, "grouper") || str_is(name, "list")))
        return false;
    *ret = obj->list->items[str_is(name, "list")];
    return true;
}

static bool macro_attr(struct rt *rt, struct value obj, const struct str *name, struct value *ret)
{
    const struct signature *sig = obj.macro->stmt->sig;
    if (str_is(name, "name")) {
        *ret = obj.macro->stmt->kind == STMT_MACRO ? value_str(rt->t->names[obj.macro->stmt->name])
                                                   : value_str(str_wrap(rt, "caller", 6));
        return true;
    }
    if (str_is(name, "arguments")) {
        struct list *l = list_new(rt, sig->count);
        for (uint32_t i = 0; i < sig->count; i++)
            list_push(rt, l, value_str(rt->t->names[sig->params[i]]));
        *ret = value_tuple(l);
        return true;
    }
    bool flag = str_is(name, "caller")          ? sig->uses_caller
                : str_is(name, "catch_varargs") ? sig->uses_varargs
                                                : sig->uses_kwargs;
    *ret = value_bool(flag);
    return str_is(name, "caller") || str_is(name, "catch_varargs") || str_is(name, "catch_kwargs");
}

static bool range_attr(const struct value *obj, const struct str *name, struct value *ret)
{
    const struct range *r = obj->range;
    bool known = str_is(name, "start") || str_is(name, "stop") || str_is(name, "step");
    if (known)
        *ret = value_int(str_is(name, "start")  ? r->start
                         : str_is(name, "stop") ? r->stop
                                                : r->step);
    return known;
}

static bool bind_method(struct rt *rt, struct value obj, const struct str *name, struct value *ret)
{
    const struct method_def *def = method_find(rt, &obj, name);
    if (def == NULL)
        return false;
    struct method *m = rt_alloc(rt, sizeof(*m));
    *m = (struct method){obj, def};
    *ret = (struct value){.kind = VALUE_METHOD, .method = m};
    return true;
}

/* Python's getattr(obj, name). */
static bool own_attr(struct rt *rt, struct value obj, const struct str *name, struct value *ret)
{
    switch (obj.kind) {
    case VALUE_NAMESPACE: {
        const struct value *v = dict_get_str(obj.dict, name);
        if (v != NULL)
            *ret = *v;
        return v != NULL;
    }
    case VALUE_LOOP:
        *ret = loop_attr(rt, obj, name);
        return ret->kind != VALUE_MISSING;
    case VALUE_CYCLER:
        return cycler_attr(rt, obj, name, ret) || bind_method(rt, obj, name, ret);
    case VALUE_TUPLE:
        return grouped_attr(&obj, name, ret) || bind_method(rt, obj, name, ret);
    case VALUE_MACRO:
        return macro_attr(rt, obj, name, ret);
    case VALUE_RANGE:
        return range_attr(&obj, name, ret) || bind_method(rt, obj, name, ret);
    default:
        return bind_method(rt, obj, name, ret);
    }
}

struct value get_attr(struct rt *rt, struct value obj, const struct str *name)
{
    struct value v;
    if (obj.kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, &obj);
    if (is_unsafe(&obj, name))
        return unsafe_attr(rt, &obj, name);
    /* Python objects have many attributes with underscores; none is safe, a key may be. */
    bool hidden = name->len > 0 && name->data[0] == '_';
    if (!hidden && own_attr(rt, obj, name, &v))
        return v;
    if (obj.kind == VALUE_DICT) {
        const struct value *at = dict_get_str(obj.dict, name);
        if (at != NULL)
            return *at;
    }
    if (hidden && name->len > 1 && name->data[1] == '_')
        return unsafe_attr(rt, &obj, name);
    return undefined_attr(rt, &obj, name);
}

/* ---- subscripts ------------------------------------------------------------------------------ */

/* Python's index rule; false = out of range. */
static bool wrap_index(int64_t i, int64_t count, int64_t *ret)
{
    if (i < 0)
        i += count;
    *ret = i;
    return i >= 0 && i < count;
}

static struct str *char_at(struct rt *rt, struct str *s, int64_t i)
{
    size_t from = str_ascii(s) ? (size_t)i : text_utf8_offset(s->data, s->len, (size_t)i);
    return str_slice(rt, s, from, text_utf8_step(s->data[from]));
}

static bool index_sequence(struct rt *rt, struct value obj, int64_t i, struct value *ret)
{
    int64_t count = 0;
    if (obj.kind != VALUE_STR && obj.kind != VALUE_LIST && obj.kind != VALUE_TUPLE &&
        obj.kind != VALUE_RANGE)
        return false;
    (void)value_length(&obj, &count);
    if (!wrap_index(i, count, &i))
        return false;
    if (obj.kind == VALUE_STR)
        *ret = value_str(char_at(rt, obj.str, i));
    else if (obj.kind == VALUE_RANGE)
        *ret = value_int(obj.range->start + obj.range->step * i);
    else
        *ret = obj.list->items[i];
    return true;
}

struct value get_item(struct rt *rt, struct value obj, struct value key)
{
    struct value v;
    int64_t i;
    if (obj.kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, &obj);
    if (obj.kind == VALUE_DICT && value_hashable(&key)) {
        const struct value *at = dict_get(rt, obj.dict, key);
        if (at != NULL)
            return *at;
    }
    if (value_as_int(&key, &i) && index_sequence(rt, obj, i, &v))
        return v;
    if (key.kind != VALUE_STR)
        return undefined_attr(rt, &obj, value_to_str(rt, &key));
    if (key.str->len > 0 && key.str->data[0] == '_')
        return undefined_attr(rt, &obj, key.str);
    if (is_unsafe(&obj, key.str))
        return unsafe_attr(rt, &obj, key.str);
    return own_attr(rt, obj, key.str, &v) ? v : undefined_attr(rt, &obj, key.str);
}

/* ---- slices ---------------------------------------------------------------------------------- */

static int64_t slice_bound(struct rt *rt, const struct value *v, int64_t otherwise)
{
    int64_t i;
    if (v->kind == VALUE_NONE)
        return otherwise;
    if (!value_as_int(v, &i))
        rt_fail(rt, ERR_INVALID, "slice indices must be integers or None, not %s",
                value_type_name(v));
    return i;
}

/* slice.indices(): start and step of the items, and how many. */
static int64_t slice_range(struct rt *rt, const struct value b[3], int64_t count,
                           int64_t *ret_start, int64_t *ret_step)
{
    int64_t step = slice_bound(rt, &b[2], 1);
    if (step == 0)
        rt_fail(rt, ERR_INVALID, "slice step cannot be zero");
    if (step < -INT32_MAX || step > INT32_MAX)
        step = step < 0 ? -INT32_MAX : INT32_MAX; /* longer than any sequence: the same items */
    int64_t low = step < 0 ? -1 : 0, high = step < 0 ? count - 1 : count;
    int64_t start = slice_bound(rt, &b[0], step < 0 ? high : low);
    int64_t stop = slice_bound(rt, &b[1], step < 0 ? low : high);
    if (b[0].kind != VALUE_NONE)
        start = start < 0 ? BASE_MAX(start + count, low) : BASE_MIN(start, high);
    if (b[1].kind != VALUE_NONE)
        stop = stop < 0 ? BASE_MAX(stop + count, low) : BASE_MIN(stop, high);
    *ret_start = start;
    *ret_step = step;
    if (step > 0)
        return start < stop ? (stop - start - 1) / step + 1 : 0;
    return stop < start ? (start - stop - 1) / -step + 1 : 0;
}

static struct str *slice_str(struct rt *rt, struct str *s, int64_t start, int64_t step, int64_t n)
{
    if (n == 0)
        return str_slice(rt, s, 0, 0);
    if (step == 1) {
        size_t from = (size_t)start, len = (size_t)n;
        if (!str_ascii(s)) {
            from = text_utf8_offset(s->data, s->len, from);
            len = text_utf8_offset(s->data + from, s->len - from, len);
        }
        return str_slice(rt, s, from, len);
    }
    rt_steps(rt, s->len);
    /* Byte offsets of all characters: the step may go backwards. */
    uint32_t *at = rt_array(rt, str_chars(s), sizeof(*at));
    size_t chars = 0;
    for (size_t pos = 0; pos < s->len; pos += text_utf8_step(s->data[pos]))
        at[chars++] = (uint32_t)pos;
    struct buf *b = rt_take_scratch(rt);
    for (int64_t i = 0; i < n; i++) {
        const char *c = s->data + at[start + i * step];
        buf_append(b, c, text_utf8_step(*c));
    }
    return rt_give_str(rt, b);
}

struct value get_slice(struct rt *rt, struct value obj, const struct value bounds[3])
{
    int64_t count = 0, start, step;
    if (obj.kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, &obj);
    if (obj.kind != VALUE_STR && obj.kind != VALUE_LIST && obj.kind != VALUE_TUPLE &&
        obj.kind != VALUE_RANGE)
        rt_fail(rt, ERR_INVALID, "'%s' object can not be sliced", value_type_name(&obj));
    (void)value_length(&obj, &count);
    int64_t n = slice_range(rt, bounds, count, &start, &step);
    if (obj.kind == VALUE_STR)
        return value_str(slice_str(rt, obj.str, start, step, n));
    if (obj.kind == VALUE_RANGE) {
        struct range *r = rt_alloc(rt, sizeof(*r));
        const struct range *from = obj.range;
        *r = (struct range){
            .start = from->start + start * from->step, .step = from->step * step, .count = n};
        r->stop = r->start + r->step * n;
        return (struct value){.kind = VALUE_RANGE, .range = r};
    }
    rt_steps(rt, (uint64_t)n);
    struct list *l = list_new(rt, (size_t)n);
    for (int64_t i = 0; i < n; i++)
        list_push(rt, l, obj.list->items[start + i * step]);
    return obj.kind == VALUE_LIST ? value_list(l) : value_tuple(l);
}

/* ---- paths ----------------------------------------------------------------------------------- */

static struct value path_part(struct rt *rt, struct value obj, struct str *part)
{
    int64_t i = 0;
    bool digits = part->len > 0 && part->len < 18;
    for (uint32_t k = 0; k < part->len && digits; k++) {
        digits = part->data[k] >= '0' && part->data[k] <= '9';
        i = i * 10 + (part->data[k] - '0');
    }
    return get_item(rt, obj, digits ? value_int(i) : value_str(part));
}

struct value get_path(struct rt *rt, struct value obj, struct value path, struct value dflt)
{
    if (path.kind == VALUE_NONE || path.kind == VALUE_MISSING)
        return obj;
    if (path.kind != VALUE_STR) {
        obj = get_item(rt, obj, path);
        return obj.kind == VALUE_UNDEFINED && dflt.kind != VALUE_MISSING ? dflt : obj;
    }
    size_t from = 0;
    for (;;) {
        const char *dot = memchr(path.str->data + from, '.', path.str->len - from);
        size_t to = dot == NULL ? path.str->len : (size_t)(dot - path.str->data);
        obj = path_part(rt, obj, str_slice(rt, path.str, from, to - from));
        if (obj.kind == VALUE_UNDEFINED && dflt.kind != VALUE_MISSING)
            obj = dflt;
        if (dot == NULL)
            return obj;
        from = to + 1;
    }
}
