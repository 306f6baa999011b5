/* Evaluating expressions. The tree is walked as it stands; a chat prompt is a few thousand nodes,
 * so what matters is that nothing on the way copies text. */
#include "experts/text/template_priv.h"

#include <string.h>

/* ---- names ----------------------------------------------------------------------------------- */

struct value frame_get(struct rt *rt, const struct frame *f, uint32_t name)
{
    for (; f != NULL; f = f->parent) {
        for (uint32_t i = 0; i < f->count; i++) {
            if (f->items[i].name == name)
                return f->items[i].value;
        }
    }
    if (rt->globals[name].kind != VALUE_MISSING)
        return rt->globals[name];
    struct undefined *u = rt_alloc(rt, sizeof(*u));
    u->name = rt->t->names[name];
    return value_undefined(u);
}

void frame_set(struct rt *rt, struct frame *f, uint32_t name, struct value v)
{
    if (f == NULL) {
        rt->globals[name] = v;
        return;
    }
    for (uint32_t i = 0; i < f->count; i++) {
        if (f->items[i].name == name) {
            f->items[i].value = v;
            return;
        }
    }
    if (f->count == f->cap) {
        uint32_t cap = f->cap == 0 ? 4 : f->cap * 2;
        struct binding *items = rt_array(rt, cap, sizeof(*items));
        if (f->count > 0)
            memcpy(items, f->items, f->count * sizeof(*items));
        f->items = items;
        f->cap = cap;
    }
    f->items[f->count++] = (struct binding){name, v};
}

static void assign_attr(struct rt *rt, struct frame *f, const struct expr *target, struct value v)
{
    struct value ns = frame_get(rt, f, target->name);
    if (ns.kind != VALUE_NAMESPACE)
        rt_fail(rt, ERR_INVALID, "cannot assign an attribute on a non-namespace object");
    dict_put(rt, ns.dict, value_str(target->attr), v);
}

static void assign_tuple(struct rt *rt, struct frame *f, const struct expr *target, struct value v)
{
    struct iter *it = iter_of(rt, v);
    for (uint32_t i = 0; i < target->count; i++) {
        struct value item;
        if (!iter_next(rt, it, &item))
            rt_fail(rt, ERR_INVALID, "not enough values to unpack (expected %u, got %u)",
                    target->count, i);
        assign(rt, f, target->items[i], item);
    }
    struct value more;
    if (iter_next(rt, it, &more))
        rt_fail(rt, ERR_INVALID, "too many values to unpack (expected %u)", target->count);
}

void assign(struct rt *rt, struct frame *f, const struct expr *target, struct value v)
{
    if (target->kind == EXPR_NAME)
        frame_set(rt, f, target->name, v);
    else if (target->kind == EXPR_NSREF)
        assign_attr(rt, f, target, v);
    else
        assign_tuple(rt, f, target, v);
}

/* ---- calls ----------------------------------------------------------------------------------- */

static void spread_items(struct rt *rt, struct args *a, struct value star)
{
    struct list *l = list_of(rt, star);
    struct value *items = rt_array(rt, (size_t)a->count + l->count, sizeof(*items));
    for (uint32_t i = 0; i < a->count; i++)
        items[i] = a->items[i];
    for (uint32_t i = 0; i < l->count; i++)
        items[a->count + i] = l->items[i];
    a->items = items;
    a->count += l->count;
}

static void spread_named(struct rt *rt, struct args *a, struct value star)
{
    if (star.kind != VALUE_DICT)
        rt_fail(rt, ERR_INVALID, "what follows ** must be a dict, not %s", value_type_name(&star));
    const struct dict *d = star.dict;
    struct named *named = rt_array(rt, (size_t)a->named_count + d->count, sizeof(*named));
    for (uint32_t i = 0; i < a->named_count; i++)
        named[i] = a->named[i];
    for (uint32_t i = 0; i < d->count; i++) {
        const struct dict_entry *en = &d->entries[i];
        if (en->key.kind != VALUE_STR)
            rt_fail(rt, ERR_INVALID, "the keys of what follows ** must be strings");
        named[a->named_count + i] = (struct named){en->key.str, en->value};
    }
    a->named = named;
    a->named_count += d->count;
}

struct args eval_args(struct rt *rt, struct frame *f, const struct call_args *c)
{
    struct args a = {.count = c->count, .named_count = c->keywords_count};
    if (a.count > 0)
        a.items = rt_array(rt, a.count, sizeof(*a.items));
    for (uint32_t i = 0; i < a.count; i++)
        a.items[i] = eval(rt, f, c->items[i]);
    if (a.named_count > 0)
        a.named = rt_array(rt, a.named_count, sizeof(*a.named));
    for (uint32_t i = 0; i < a.named_count; i++)
        a.named[i] = (struct named){c->keywords[i].name, eval(rt, f, c->keywords[i].value)};
    if (c->star != NULL)
        spread_items(rt, &a, eval(rt, f, c->star));
    if (c->star_star != NULL)
        spread_named(rt, &a, eval(rt, f, c->star_star));
    return a;
}

static struct value cycler_call(struct rt *rt, struct value callee)
{
    rt_fail(rt, ERR_INVALID, "'%s' object is not callable", value_type_name(&callee));
}

struct value call_value(struct rt *rt, struct value callee, const struct args *a)
{
    struct value iterable;
    switch (callee.kind) {
    case VALUE_FUNCTION:
        return global_call(rt, callee.function, a);
    case VALUE_METHOD:
        return callee.method->def->fn(rt, callee.method->self, a);
    case VALUE_MACRO:
        return macro_call(rt, callee.macro, a);
    case VALUE_JOINER:
        if (callee.joiner->used)
            return value_str(callee.joiner->sep);
        callee.joiner->used = true;
        return value_str(str_wrap(rt, "", 0));
    case VALUE_LOOP:
        args_bind(rt, a, "loop", "iterable", 1, &iterable);
        return loop_recurse(rt, callee.loop, iterable);
    case VALUE_UNDEFINED:
        value_fail_undefined(rt, &callee);
    default:
        return cycler_call(rt, callee);
    }
}

/* ---- expressions ----------------------------------------------------------------------------- */

static struct value eval_items(struct rt *rt, struct frame *f, const struct expr *x)
{
    struct list *l = list_new(rt, x->count);
    for (uint32_t i = 0; i < x->count; i++)
        list_push(rt, l, eval(rt, f, x->items[i]));
    return x->kind == EXPR_LIST ? value_list(l) : value_tuple(l);
}

static struct value eval_dict(struct rt *rt, struct frame *f, const struct expr *x)
{
    struct dict *d = dict_new(rt, x->count / 2);
    for (uint32_t i = 0; i + 1 < x->count; i += 2) {
        struct value key = eval(rt, f, x->items[i]);
        dict_put(rt, d, key, eval(rt, f, x->items[i + 1]));
    }
    return value_dict(d);
}

static struct value eval_slice(struct rt *rt, struct frame *f, const struct expr *x)
{
    struct value obj = eval(rt, f, x->a), bounds[3];
    for (uint32_t i = 0; i < 3; i++)
        bounds[i] = x->items[i] == NULL ? value_none() : eval(rt, f, x->items[i]);
    return get_slice(rt, obj, bounds);
}

static struct value eval_concat(struct rt *rt, struct frame *f, const struct expr *x)
{
    struct value first = eval(rt, f, x->items[0]);
    struct str *s = value_to_str(rt, &first);
    for (uint32_t i = 1; i < x->count; i++) {
        struct value v = eval(rt, f, x->items[i]);
        s = str_concat(rt, s, value_to_str(rt, &v));
    }
    if (s->markup) {
        s = str_slice(rt, s, 0, s->len);
        s->markup = false;
    }
    return value_str(s);
}

static struct value eval_compare(struct rt *rt, struct frame *f, const struct expr *x)
{
    struct value left = eval(rt, f, x->a);
    for (uint32_t i = 0; i < x->count; i++) {
        struct value right = eval(rt, f, x->items[i]);
        rt->line = x->line;
        if (!op_compare(rt, x->ops[i], left, right))
            return value_bool(false);
        left = right;
    }
    return value_bool(true);
}

static struct value eval_cond(struct rt *rt, struct frame *f, const struct expr *x)
{
    struct value test = eval(rt, f, x->b);
    if (value_truthy(&test))
        return eval(rt, f, x->a);
    if (x->c != NULL)
        return eval(rt, f, x->c);
    return value_undefined_hint(rt, "an inline if without else was false, and its value is used");
}

static struct value eval_call(struct rt *rt, struct frame *f, const struct expr *x)
{
    struct value callee = eval(rt, f, x->a);
    struct args a = eval_args(rt, f, x->args);
    rt->line = x->line;
    return call_value(rt, callee, &a);
}

static struct value eval_filter(struct rt *rt, struct frame *f, const struct expr *x)
{
    struct value in = eval(rt, f, x->a);
    struct args a = eval_args(rt, f, x->args);
    rt->line = x->line;
    return x->filter->fn(rt, in, &a);
}

static struct value eval_test(struct rt *rt, struct frame *f, const struct expr *x)
{
    struct value in = eval(rt, f, x->a);
    struct args a = eval_args(rt, f, x->args);
    rt->line = x->line;
    return value_bool(test_call(rt, x->test, in, &a));
}

static struct value eval_binary(struct rt *rt, struct frame *f, const struct expr *x)
{
    struct value a = eval(rt, f, x->a);
    struct value b = eval(rt, f, x->b);
    rt->line = x->line;
    return op_binary(rt, x->op, a, b);
}

static struct value eval_logic(struct rt *rt, struct frame *f, const struct expr *x)
{
    struct value a = eval(rt, f, x->a);
    if (value_truthy(&a) == (x->kind == EXPR_OR))
        return a;
    return eval(rt, f, x->b);
}

static struct value eval_not(struct rt *rt, struct frame *f, const struct expr *x)
{
    struct value a = eval(rt, f, x->a);
    return value_bool(!value_truthy(&a));
}

static struct value eval_sign(struct rt *rt, struct frame *f, const struct expr *x)
{
    struct value a = eval(rt, f, x->a);
    rt->line = x->line;
    if (x->kind == EXPR_NEG)
        return op_negate(rt, a);
    if (a.kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, &a);
    if (!value_is_number(&a))
        rt_fail(rt, ERR_INVALID, "bad operand type for unary +: '%s'", value_type_name(&a));
    return a.kind == VALUE_BOOL ? value_int(a.b) : a;
}

static struct value eval_access(struct rt *rt, struct frame *f, const struct expr *x)
{
    struct value obj = eval(rt, f, x->a);
    if (x->kind == EXPR_ATTR) {
        rt->line = x->line;
        return get_attr(rt, obj, x->attr);
    }
    struct value key = eval(rt, f, x->b);
    rt->line = x->line;
    return get_item(rt, obj, key);
}

static struct value eval_kind(struct rt *rt, struct frame *f, const struct expr *x)
{
    switch (x->kind) {
    case EXPR_CONST:
        return x->value;
    case EXPR_NAME:
    case EXPR_NSREF:
        return frame_get(rt, f, x->name);
    case EXPR_LIST:
    case EXPR_TUPLE:
        return eval_items(rt, f, x);
    case EXPR_DICT:
        return eval_dict(rt, f, x);
    case EXPR_ATTR:
    case EXPR_ITEM:
        return eval_access(rt, f, x);
    case EXPR_SLICE:
        return eval_slice(rt, f, x);
    case EXPR_CALL:
        return eval_call(rt, f, x);
    case EXPR_FILTER:
        return eval_filter(rt, f, x);
    case EXPR_TEST:
        return eval_test(rt, f, x);
    case EXPR_NOT:
        return eval_not(rt, f, x);
    case EXPR_NEG:
    case EXPR_POS:
        return eval_sign(rt, f, x);
    case EXPR_BINARY:
        return eval_binary(rt, f, x);
    case EXPR_CONCAT:
        return eval_concat(rt, f, x);
    case EXPR_COMPARE:
        return eval_compare(rt, f, x);
    case EXPR_AND:
    case EXPR_OR:
        return eval_logic(rt, f, x);
    case EXPR_COND:
        return eval_cond(rt, f, x);
    }
    return value_none();
}

struct value eval(struct rt *rt, struct frame *f, const struct expr *x)
{
    rt_steps(rt, 1);
    rt_enter(rt);
    struct value v = eval_kind(rt, f, x);
    rt_leave(rt);
    return v;
}
