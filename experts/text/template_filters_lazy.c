/* Filters that give generators: map, select and its kin, unique, batch, slice, items, reverse.
 * Their work happens item by item when somebody iterates, as in Jinja, and only once. */
#include "experts/text/template_priv.h"

#include <string.h>

static struct iter *generator(struct rt *rt, const char *name, struct value source,
                              bool (*next)(struct rt *rt, struct iter *it, struct value *ret),
                              void *state)
{
    struct iter *it = rt_alloc(rt, sizeof(*it));
    it->name = name;
    it->source = source;
    it->next = next;
    it->state = state;
    return it;
}

/* The source is opened at the first item: a generator that nobody reads complains of nothing. */
static bool next_source(struct rt *rt, struct iter *it, struct value *ret)
{
    if (it->inner == NULL)
        it->inner = iter_of(rt, it->source);
    return iter_next(rt, it->inner, ret);
}

/* ---- map, select ----------------------------------------------------------------------------- */

struct pick {
    struct args given;               /* the arguments as they came */
    bool by_attr;                    /* select and reject: the first one is an attribute */
    struct args args;                /* for the filter or test */
    const struct filter_def *filter; /* map: NULL = only the path */
    const struct test_def *test;     /* select: NULL = truth */
    struct value path, dflt;         /* of an attribute; MISSING = the item itself */
    bool wanted;                     /* select true, reject false */
};

static struct pick *pick_new(struct rt *rt)
{
    struct pick *p = rt_alloc(rt, sizeof(*p));
    p->path.kind = p->dflt.kind = VALUE_MISSING;
    return p;
}

static void map_attribute(struct rt *rt, struct pick *p)
{
    struct value v[2];
    args_bind(rt, &p->given, "map", "attribute default", 1, v);
    p->path = v[0];
    p->dflt = v[1].kind == VALUE_NONE ? (struct value){.kind = VALUE_MISSING} : v[1];
}

/* The name a filter or a test is called by in map, select and their kin. */
static const struct str *callee_name(struct rt *rt, struct value v, const char *what)
{
    return arg_str(rt, &v, NULL, what);
}

static struct args args_behind(const struct args *a, uint32_t skip)
{
    struct args rest = *a;
    rest.items += skip;
    rest.count -= skip;
    return rest;
}

/* As in Jinja the arguments are looked at when the first item is wanted. */
static void map_prepare(struct rt *rt, struct pick *p)
{
    if (p->given.count == 0) {
        map_attribute(rt, p);
        return;
    }
    const struct str *name = callee_name(rt, p->given.items[0], "map");
    p->filter = filter_find(name->data, name->len);
    if (p->filter == NULL)
        rt_fail(rt, ERR_UNSUPPORTED, "the filter '%.*s' is not supported",
                (int)BASE_MIN(name->len, 60u), name->data);
    p->args = args_behind(&p->given, 1);
}

static bool next_mapped(struct rt *rt, struct iter *it, struct value *ret)
{
    const struct pick *p = it->state;
    struct value item;
    if (!it->started && value_truthy(&it->source))
        map_prepare(rt, it->state);
    it->started = true;
    if (!value_truthy(&it->source) || !next_source(rt, it, &item))
        return false;
    *ret = p->filter != NULL ? p->filter->fn(rt, item, &p->args)
                             : get_path(rt, item, p->path, p->dflt);
    return true;
}

static struct value f_map(struct rt *rt, struct value in, const struct args *a)
{
    struct pick *p = pick_new(rt);
    p->given = *a;
    return value_iter(generator(rt, "sync_do_map", in, next_mapped, p));
}

static void pick_prepare(struct rt *rt, struct pick *p)
{
    struct args rest = p->given;
    if (p->by_attr) {
        if (rest.count == 0)
            rt_fail(rt, ERR_INVALID, "selectattr and rejectattr need the name of an attribute");
        p->path = rest.items[0];
        rest = args_behind(&rest, 1);
    }
    if (rest.count == 0)
        return;
    const struct str *name = callee_name(rt, rest.items[0], "the name of a test");
    p->test = test_find(name->data, name->len);
    if (p->test == NULL)
        rt_fail(rt, ERR_UNSUPPORTED, "the test '%.*s' is not supported",
                (int)BASE_MIN(name->len, 60u), name->data);
    p->args = args_behind(&rest, 1);
}

static bool next_picked(struct rt *rt, struct iter *it, struct value *ret)
{
    const struct pick *p = it->state;
    if (!value_truthy(&it->source))
        return false;
    if (!it->started)
        pick_prepare(rt, it->state);
    it->started = true;
    while (next_source(rt, it, ret)) {
        struct value v = get_path(rt, *ret, p->path, p->dflt);
        bool ok = p->test != NULL ? test_call(rt, p->test, v, &p->args) : value_truthy(&v);
        if (ok == p->wanted)
            return true;
    }
    return false;
}

static struct value pick_items(struct rt *rt, struct value in, const struct args *a, bool by_attr,
                               bool wanted)
{
    struct pick *p = pick_new(rt);
    p->given = *a;
    p->by_attr = by_attr;
    p->wanted = wanted;
    return value_iter(generator(rt, "select_or_reject", in, next_picked, p));
}

static struct value f_select(struct rt *rt, struct value in, const struct args *a)
{
    return pick_items(rt, in, a, false, true);
}

static struct value f_reject(struct rt *rt, struct value in, const struct args *a)
{
    return pick_items(rt, in, a, false, false);
}

static struct value f_selectattr(struct rt *rt, struct value in, const struct args *a)
{
    return pick_items(rt, in, a, true, true);
}

static struct value f_rejectattr(struct rt *rt, struct value in, const struct args *a)
{
    return pick_items(rt, in, a, true, false);
}

/* ---- unique, items, reverse ------------------------------------------------------------------ */

struct uniques {
    struct dict *seen;
    struct value path;
    bool fold;
};

static bool next_unique(struct rt *rt, struct iter *it, struct value *ret)
{
    const struct uniques *u = it->state;
    while (next_source(rt, it, ret)) {
        struct value key = get_path(rt, *ret, u->path, (struct value){.kind = VALUE_MISSING});
        if (u->fold)
            key = fold_case(rt, key);
        if (dict_get(rt, u->seen, key) == NULL) {
            dict_put(rt, u->seen, key, value_none());
            return true;
        }
    }
    return false;
}

static struct value f_unique(struct rt *rt, struct value in, const struct args *a)
{
    struct value v[2];
    args_bind(rt, a, "unique", "case_sensitive attribute", 0, v);
    struct uniques *u = rt_alloc(rt, sizeof(*u));
    *u = (struct uniques){dict_new(rt, 0), v[1], !arg_bool(&v[0], false)};
    return value_iter(generator(rt, "sync_do_unique", in, next_unique, u));
}

static bool next_item_pair(struct rt *rt, struct iter *it, struct value *ret)
{
    if (it->source.kind == VALUE_UNDEFINED)
        return false;
    if (it->source.kind != VALUE_DICT)
        rt_fail(rt, ERR_INVALID, "can only get item pairs from a mapping, not %s",
                value_type_name(&it->source));
    const struct dict *d = it->source.dict;
    if (it->pos >= d->count)
        return false;
    const struct dict_entry *en = &d->entries[it->pos++];
    *ret = tuple_pair(rt, en->key, en->value);
    return true;
}

static struct value f_items(struct rt *rt, struct value in, const struct args *a)
{
    args_bind(rt, a, "items", "", 0, NULL);
    return value_iter(generator(rt, "do_items", in, next_item_pair, NULL));
}

static bool next_reversed(struct rt *rt, struct iter *it, struct value *ret)
{
    const struct list *l = it->source.list;
    if (it->pos >= l->count)
        return false;
    *ret = l->items[l->count - 1 - it->pos++];
    return true;
}

static struct value f_reverse(struct rt *rt, struct value in, const struct args *a)
{
    args_bind(rt, a, "reverse", "", 0, NULL);
    if (in.kind == VALUE_STR) {
        struct value bounds[3] = {value_none(), value_none(), value_int(-1)};
        return get_slice(rt, in, bounds);
    }
    struct list *l = in.kind == VALUE_LIST || in.kind == VALUE_TUPLE ? in.list : list_of(rt, in);
    struct iter *it = generator(rt, "list_reverseiterator", value_list(l), next_reversed, NULL);
    /* What Python can not reverse in place it turns into a list. */
    return in.kind == VALUE_ITER ? value_list(list_of(rt, value_iter(it))) : value_iter(it);
}

/* ---- batch, slice ---------------------------------------------------------------------------- */

struct chunks {
    int64_t size; /* batch: items of a batch; slice: number of slices */
    struct value fill;
    struct list *all; /* slice: the items */
    int64_t index;
};

static void fill_up(struct rt *rt, struct list *l, int64_t count, struct value fill)
{
    if (fill.kind == VALUE_MISSING || fill.kind == VALUE_NONE)
        return;
    while (l->count < count) {
        rt_steps(rt, 1);
        list_push(rt, l, fill);
    }
}

static bool next_batch(struct rt *rt, struct iter *it, struct value *ret)
{
    const struct chunks *c = it->state;
    struct list *l = list_new(rt, 0);
    struct value item;
    /* A size below one never fills: Jinja then gives everything in one batch. */
    while ((l->count != c->size || l->count == 0) && next_source(rt, it, &item))
        list_push(rt, l, item);
    if (l->count == 0)
        return false;
    fill_up(rt, l, c->size, c->fill);
    *ret = value_list(l);
    return true;
}

static struct chunks *chunks_new(struct rt *rt, const struct args *a, const char *what,
                                 const char *params)
{
    struct value v[2];
    args_bind(rt, a, what, params, 1, v);
    struct chunks *c = rt_alloc(rt, sizeof(*c));
    *c = (struct chunks){.size = arg_int(rt, &v[0], 1, what), .fill = v[1]};
    return c;
}

static struct value f_batch(struct rt *rt, struct value in, const struct args *a)
{
    struct chunks *c = chunks_new(rt, a, "batch", "linecount fill_with");
    return value_iter(generator(rt, "do_batch", in, next_batch, c));
}

/* Slice number i of n: the first `count % n` slices have one item more. */
static bool next_slice(struct rt *rt, struct iter *it, struct value *ret)
{
    struct chunks *c = it->state;
    if (c->all == NULL) {
        if (c->size == 0)
            rt_fail(rt, ERR_INVALID, "slice: the number of slices must not be zero");
        c->all = list_of(rt, it->source);
    }
    if (c->index >= c->size)
        return false;
    int64_t each = c->all->count / c->size, extra = c->all->count % c->size;
    int64_t from = c->index * each + BASE_MIN(c->index, extra);
    int64_t to = from + each + (c->index < extra);
    struct list *l = list_new(rt, (size_t)(to - from));
    for (int64_t i = from; i < to; i++)
        list_push(rt, l, c->all->items[i]);
    if (c->index >= extra)
        fill_up(rt, l, to - from + 1, c->fill);
    c->index++;
    *ret = value_list(l);
    return true;
}

static struct value f_slice(struct rt *rt, struct value in, const struct args *a)
{
    struct chunks *c = chunks_new(rt, a, "slice", "slices fill_with");
    return value_iter(generator(rt, "sync_do_slice", in, next_slice, c));
}

const struct filter_def filters_lazy[] = {
    {"batch", f_batch},
    {"items", f_items},
    {"map", f_map},
    {"reject", f_reject},
    {"rejectattr", f_rejectattr},
    {"reverse", f_reverse},
    {"select", f_select},
    {"selectattr", f_selectattr},
    {"slice", f_slice},
    {"unique", f_unique},
    {NULL, NULL},
};
