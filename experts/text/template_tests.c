/* Jinja's tests: what may stand behind `is`, and what select and its kind call by name. */
#include "experts/text/template_priv.h"

#include <math.h>
#include <string.h>

static bool t_defined(struct rt *rt, struct value in, const struct args *a)
{
    return in.kind != VALUE_UNDEFINED;
}

static bool t_undefined(struct rt *rt, struct value in, const struct args *a)
{
    return in.kind == VALUE_UNDEFINED;
}

static bool t_none(struct rt *rt, struct value in, const struct args *a)
{
    return in.kind == VALUE_NONE;
}

static bool t_boolean(struct rt *rt, struct value in, const struct args *a)
{
    return in.kind == VALUE_BOOL;
}

static bool t_true(struct rt *rt, struct value in, const struct args *a)
{
    return in.kind == VALUE_BOOL && in.b;
}

static bool t_false(struct rt *rt, struct value in, const struct args *a)
{
    return in.kind == VALUE_BOOL && !in.b;
}

static bool t_integer(struct rt *rt, struct value in, const struct args *a)
{
    return in.kind == VALUE_INT;
}

static bool t_float(struct rt *rt, struct value in, const struct args *a)
{
    return in.kind == VALUE_FLOAT;
}

static bool t_number(struct rt *rt, struct value in, const struct args *a)
{
    return value_is_number(&in);
}

static bool t_string(struct rt *rt, struct value in, const struct args *a)
{
    return in.kind == VALUE_STR;
}

static bool t_mapping(struct rt *rt, struct value in, const struct args *a)
{
    return in.kind == VALUE_DICT;
}

static bool t_iterable(struct rt *rt, struct value in, const struct args *a)
{
    return value_iterable(&in);
}

/* What has a length and a subscript; undefined has both in Jinja. */
static bool t_sequence(struct rt *rt, struct value in, const struct args *a)
{
    int64_t n;
    return in.kind != VALUE_VIEW && value_length(&in, &n);
}

static bool t_callable(struct rt *rt, struct value in, const struct args *a)
{
    return in.kind == VALUE_FUNCTION || in.kind == VALUE_METHOD || in.kind == VALUE_MACRO ||
           in.kind == VALUE_JOINER || in.kind == VALUE_LOOP || in.kind == VALUE_UNDEFINED;
}

static bool t_escaped(struct rt *rt, struct value in, const struct args *a)
{
    return in.kind == VALUE_STR && in.str->markup;
}

/* The remainder of in / divisor is `want`; floats have one too. */
static bool has_remainder(struct rt *rt, struct value in, struct value divisor, double want)
{
    struct value r = op_binary(rt, '%', in, divisor);
    return value_is_number(&r) && value_as_float(&r) == want;
}

static bool t_odd(struct rt *rt, struct value in, const struct args *a)
{
    return has_remainder(rt, in, value_int(2), 1.0);
}

static bool t_even(struct rt *rt, struct value in, const struct args *a)
{
    return has_remainder(rt, in, value_int(2), 0.0);
}

static bool t_divisibleby(struct rt *rt, struct value in, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "divisibleby", "num", 1, &v);
    return has_remainder(rt, in, v, 0.0);
}

static bool t_lower(struct rt *rt, struct value in, const struct args *a)
{
    return str_is_lower(value_to_str(rt, &in));
}

static bool t_upper(struct rt *rt, struct value in, const struct args *a)
{
    return str_is_upper(value_to_str(rt, &in));
}

static bool t_filter(struct rt *rt, struct value in, const struct args *a)
{
    (void)value_hash(rt, &in);
    return in.kind == VALUE_STR && filter_find(in.str->data, in.str->len) != NULL;
}

static bool t_test(struct rt *rt, struct value in, const struct args *a)
{
    (void)value_hash(rt, &in);
    return in.kind == VALUE_STR && test_find(in.str->data, in.str->len) != NULL;
}

/* Identity. Constants and equal small numbers are one object in Python; strings and containers are
 * the same only if they are one value here. */
static bool t_sameas(struct rt *rt, struct value in, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "sameas", "other", 1, &v);
    if (in.kind != v.kind)
        return false;
    switch (in.kind) {
    case VALUE_NONE:
        return true;
    case VALUE_BOOL:
        return in.b == v.b;
    case VALUE_INT:
        return in.i == v.i;
    case VALUE_FLOAT:
        return in.f == v.f;
    case VALUE_FUNCTION:
        return in.function == v.function;
    case VALUE_STR:
        return str_equal(in.str, v.str);
    default:
        return in.dict == v.dict;
    }
}

static bool compare_with(struct rt *rt, int op, struct value in, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "a comparison test", "other", 1, &v);
    return op_compare(rt, op, in, v);
}

static bool t_eq(struct rt *rt, struct value in, const struct args *a)
{
    return compare_with(rt, OP2('=', '='), in, a);
}

static bool t_ne(struct rt *rt, struct value in, const struct args *a)
{
    return compare_with(rt, OP2('!', '='), in, a);
}

static bool t_lt(struct rt *rt, struct value in, const struct args *a)
{
    return compare_with(rt, '<', in, a);
}

static bool t_le(struct rt *rt, struct value in, const struct args *a)
{
    return compare_with(rt, OP2('<', '='), in, a);
}

static bool t_gt(struct rt *rt, struct value in, const struct args *a)
{
    return compare_with(rt, '>', in, a);
}

static bool t_ge(struct rt *rt, struct value in, const struct args *a)
{
    return compare_with(rt, OP2('>', '='), in, a);
}

static bool t_in(struct rt *rt, struct value in, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "in", "seq", 1, &v);
    return op_contains(rt, in, v);
}

static const struct test_def tests[] = {
    {"boolean", t_boolean, false},
    {"callable", t_callable, false},
    {"defined", t_defined, false},
    {"divisibleby", t_divisibleby, true},
    {"eq", t_eq, true},
    {"equalto", t_eq, true},
    {"==", t_eq, true},
    {"escaped", t_escaped, false},
    {"even", t_even, false},
    {"false", t_false, false},
    {"filter", t_filter, false},
    {"float", t_float, false},
    {"ge", t_ge, true},
    {">=", t_ge, true},
    {"gt", t_gt, true},
    {"greaterthan", t_gt, true},
    {">", t_gt, true},
    {"in", t_in, true},
    {"integer", t_integer, false},
    {"iterable", t_iterable, false},
    {"le", t_le, true},
    {"<=", t_le, true},
    {"lower", t_lower, false},
    {"lt", t_lt, true},
    {"lessthan", t_lt, true},
    {"<", t_lt, true},
    {"mapping", t_mapping, false},
    {"ne", t_ne, true},
    {"!=", t_ne, true},
    {"none", t_none, false},
    {"number", t_number, false},
    {"odd", t_odd, false},
    {"sameas", t_sameas, true},
    {"sequence", t_sequence, false},
    {"string", t_string, false},
    {"test", t_test, false},
    {"true", t_true, false},
    {"undefined", t_undefined, false},
    {"upper", t_upper, false},
};

const struct test_def *test_find(const char *name, size_t len)
{
    for (size_t i = 0; i < BASE_COUNT(tests); i++) {
        if (strlen(tests[i].name) == len && memcmp(tests[i].name, name, len) == 0)
            return &tests[i];
    }
    return NULL;
}

bool test_call(struct rt *rt, const struct test_def *def, struct value in, const struct args *a)
{
    if (!def->takes_argument && a->count + a->named_count > 0)
        rt_fail(rt, ERR_INVALID, "the test '%s' takes no argument", def->name);
    return def->fn(rt, in, a);
}
