/* Operators: Python's arithmetic, comparison and membership, as far as templates reach them. */
#include "experts/text/template_priv.h"

#include <math.h>
#include <string.h>

static const char *op_text(int op, char buf[4])
{
    if (op == COMPARE_IN)
        return "in";
    if (op == COMPARE_NOT_IN)
        return "not in";
    if (op > 0xFF)
        (void)snprintf(buf, 4, "%c%c", op >> 8, op & 0xFF);
    else
        (void)snprintf(buf, 4, "%c", op);
    return buf;
}

static void fail_operands(struct rt *rt, int op, const struct value *a, const struct value *b)
    __attribute__((noreturn));
static void fail_operands(struct rt *rt, int op, const struct value *a, const struct value *b)
{
    char buf[4];
    if (a->kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, a);
    if (b->kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, b);
    if (op == '+' && a->kind == VALUE_STR)
        rt_fail(rt, ERR_INVALID, "can only concatenate str (not \"%s\") to str",
                value_type_name(b));
    rt_fail(rt, ERR_INVALID, "unsupported operand type(s) for %s: '%s' and '%s'", op_text(op, buf),
            value_type_name(a), value_type_name(b));
}

static void fail_overflow(struct rt *rt) __attribute__((noreturn));
static void fail_overflow(struct rt *rt)
{
    rt_fail(rt, ERR_UNSUPPORTED, "a number beyond 64 bits is not supported");
}

static void fail_zero(struct rt *rt) __attribute__((noreturn));
static void fail_zero(struct rt *rt)
{
    rt_fail(rt, ERR_INVALID, "division by zero");
}

/* ---- numbers --------------------------------------------------------------------------------- */

static struct value int_power(struct rt *rt, int64_t base, int64_t exp)
{
    if (exp < 0) {
        if (base == 0)
            fail_zero(rt);
        return value_float(pow((double)base, (double)exp));
    }
    int64_t r = 1;
    for (;;) {
        if ((exp & 1) != 0 && __builtin_mul_overflow(r, base, &r))
            fail_overflow(rt);
        exp >>= 1;
        if (exp == 0)
            return value_int(r);
        if (__builtin_mul_overflow(base, base, &base))
            fail_overflow(rt);
    }
}

/* Python rounds quotients down, and the remainder has the divisor's sign. */
static struct value int_divide(struct rt *rt, int op, int64_t a, int64_t b)
{
    if (b == 0)
        fail_zero(rt);
    if (op == '/')
        return value_float((double)a / (double)b);
    if (a == INT64_MIN && b == -1) {
        if (op == '%')
            return value_int(0);
        fail_overflow(rt);
    }
    int64_t q = a / b, r = a % b;
    if (r != 0 && (r < 0) != (b < 0)) {
        q--;
        r += b;
    }
    return value_int(op == '%' ? r : q);
}

static struct value int_binary(struct rt *rt, int op, int64_t a, int64_t b)
{
    int64_t r;
    bool overflow;
    switch (op) {
    case '+':
        overflow = __builtin_add_overflow(a, b, &r);
        break;
    case '-':
        overflow = __builtin_sub_overflow(a, b, &r);
        break;
    case '*':
        overflow = __builtin_mul_overflow(a, b, &r);
        break;
    case OP2('*', '*'):
        return int_power(rt, a, b);
    default:
        return int_divide(rt, op, a, b);
    }
    if (overflow)
        fail_overflow(rt);
    return value_int(r);
}

static double float_modulo(double a, double b)
{
    double r = fmod(a, b);
    if (r != 0.0 && (r < 0) != (b < 0))
        r += b;
    return r == 0.0 ? copysign(0.0, b) : r;
}

/* CPython's: from the remainder, so that it agrees with % to the last bit. */
static double float_floordiv(double a, double b)
{
    double q = (a - float_modulo(a, b)) / b;
    if (q == 0.0)
        return copysign(0.0, a / b);
    double down = floor(q);
    return q - down > 0.5 ? down + 1.0 : down;
}

static struct value float_binary(struct rt *rt, int op, double a, double b)
{
    switch (op) {
    case '+':
        return value_float(a + b);
    case '-':
        return value_float(a - b);
    case '*':
        return value_float(a * b);
    case OP2('*', '*'):
        if (a == 0.0 && b < 0.0)
            fail_zero(rt);
        if (a < 0.0 && b != floor(b))
            rt_fail(rt, ERR_UNSUPPORTED, "complex numbers are not supported");
        return value_float(pow(a, b));
    default:
        break;
    }
    if (b == 0.0)
        fail_zero(rt);
    return value_float(op == '/' ? a / b : op == '%' ? float_modulo(a, b) : float_floordiv(a, b));
}

/* ---- sequences ------------------------------------------------------------------------------- */

static struct value add_strings(struct rt *rt, struct str *a, struct str *b)
{
    if (!a->markup && !b->markup)
        return value_str(str_concat(rt, a, b));
    struct str *s = str_concat(rt, a->markup ? a : str_escape_html(rt, a),
                               b->markup ? b : str_escape_html(rt, b));
    s->markup = true;
    return value_str(s);
}

static struct list *add_lists(struct rt *rt, const struct list *a, const struct list *b)
{
    rt_steps(rt, (uint64_t)a->count + b->count);
    struct list *l = list_new(rt, (size_t)a->count + b->count);
    for (uint32_t i = 0; i < a->count; i++)
        list_push(rt, l, a->items[i]);
    for (uint32_t i = 0; i < b->count; i++)
        list_push(rt, l, b->items[i]);
    return l;
}

static struct value repeat(struct rt *rt, struct value v, int64_t times)
{
    if (times < 0)
        times = 0;
    if (v.kind == VALUE_STR) {
        size_t bytes;
        if (!size_mul(v.str->len, (size_t)times, &bytes))
            bytes = SIZE_MAX;
        rt_room(rt, bytes);
        char *data = bytes > 0 ? rt_chars(rt, bytes) : NULL;
        for (size_t at = 0; at < bytes; at += v.str->len)
            memcpy(data + at, v.str->data, v.str->len);
        struct str *s = str_wrap(rt, bytes > 0 ? data : "", bytes);
        s->markup = v.str->markup;
        return value_str(s);
    }
    size_t count;
    if (!size_mul(v.list->count, (size_t)times, &count) ||
        count > TEMPLATE_MEMORY_MAX / sizeof(struct value))
        rt_room(rt, SIZE_MAX);
    rt_steps(rt, count);
    struct list *l = list_new(rt, count);
    for (size_t i = 0; i < count; i++)
        list_push(rt, l, v.list->items[i % v.list->count]);
    return v.kind == VALUE_LIST ? value_list(l) : value_tuple(l);
}

static bool is_sequence(const struct value *v)
{
    return v->kind == VALUE_STR || v->kind == VALUE_LIST || v->kind == VALUE_TUPLE;
}

static struct value sequence_binary(struct rt *rt, int op, struct value a, struct value b)
{
    int64_t times;
    if (op == '+' && a.kind == VALUE_STR && b.kind == VALUE_STR)
        return add_strings(rt, a.str, b.str);
    if (op == '+' && a.kind == VALUE_LIST && b.kind == VALUE_LIST)
        return value_list(add_lists(rt, a.list, b.list));
    if (op == '+' && a.kind == VALUE_TUPLE && b.kind == VALUE_TUPLE)
        return value_tuple(add_lists(rt, a.list, b.list));
    if (op == '*' && is_sequence(&a) && value_as_int(&b, &times))
        return repeat(rt, a, times);
    if (op == '*' && is_sequence(&b) && value_as_int(&a, &times))
        return repeat(rt, b, times);
    if (op == '%' && a.kind == VALUE_STR)
        return value_str(str_percent(rt, a.str, b));
    fail_operands(rt, op, &a, &b);
}

struct value op_binary(struct rt *rt, int op, struct value a, struct value b)
{
    int64_t x, y;
    if (value_as_int(&a, &x) && value_as_int(&b, &y))
        return int_binary(rt, op, x, y);
    if (value_is_number(&a) && value_is_number(&b))
        return float_binary(rt, op, value_as_float(&a), value_as_float(&b));
    return sequence_binary(rt, op, a, b);
}

struct value op_negate(struct rt *rt, struct value v)
{
    int64_t i;
    if (v.kind == VALUE_FLOAT)
        return value_float(-v.f);
    if (value_as_int(&v, &i)) {
        if (i == INT64_MIN)
            fail_overflow(rt);
        return value_int(-i);
    }
    if (v.kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, &v);
    rt_fail(rt, ERR_INVALID, "bad operand type for unary -: '%s'", value_type_name(&v));
}

/* ---- comparison ------------------------------------------------------------------------------ */

static bool contains_item(struct rt *rt, struct iter *it, const struct value *needle)
{
    struct value item;
    while (iter_next(rt, it, &item)) {
        if (value_equal(rt, &item, needle))
            return true;
    }
    return false;
}

bool op_contains(struct rt *rt, struct value needle, struct value hay)
{
    if (hay.kind == VALUE_STR) {
        if (needle.kind != VALUE_STR)
            rt_fail(rt, ERR_INVALID, "'in <string>' requires string as left operand, not %s",
                    value_type_name(&needle));
        return str_find(hay.str, needle.str, 0) >= 0;
    }
    if (hay.kind == VALUE_DICT)
        return dict_get(rt, hay.dict, needle) != NULL;
    if (hay.kind == VALUE_VIEW && hay.view->kind == VIEW_KEYS)
        return dict_get(rt, hay.view->dict, needle) != NULL;
    if (!value_iterable(&hay) || hay.kind == VALUE_LOOP)
        rt_fail(rt, ERR_INVALID, "argument of type '%s' is not iterable", value_type_name(&hay));
    return contains_item(rt, iter_of(rt, hay), &needle);
}

bool op_compare(struct rt *rt, int op, struct value a, struct value b)
{
    char buf[4];
    switch (op) {
    case OP2('=', '='):
        return value_equal(rt, &a, &b);
    case OP2('!', '='):
        return !value_equal(rt, &a, &b);
    case COMPARE_IN:
        return op_contains(rt, a, b);
    case COMPARE_NOT_IN:
        return !op_contains(rt, a, b);
    default:
        break;
    }
    int c = value_compare(rt, &a, &b, op_text(op, buf)); /* 2: not a number, neither way */
    switch (op) {
    case '<':
        return c < 0;
    case '>':
        return c == 1;
    case OP2('<', '='):
        return c <= 0;
    default:
        return c == 0 || c == 1;
    }
}
