/* Filters on sequences that need all items at once. The lazy ones are in template_filters_lazy.c.
 */
#include "experts/text/template_priv.h"

#include <stdlib.h>
#include <string.h>

static struct value missing(void)
{
    return (struct value){.kind = VALUE_MISSING};
}

/* ---- sorting --------------------------------------------------------------------------------- */

/* Merge sort on positions: stable, and n log n comparisons whatever the input. */
static void merge_runs(struct rt *rt, const struct value *items, uint32_t *order, uint32_t *spare,
                       uint32_t count, bool reverse)
{
    if (count < 2)
        return;
    uint32_t half = count / 2;
    merge_runs(rt, items, order, spare, half, reverse);
    merge_runs(rt, items, order + half, spare, count - half, reverse);
    memcpy(spare, order, half * sizeof(*spare));
    uint32_t left = 0, right = half, at = 0;
    while (left < half && right < count) {
        const struct value *a = &items[spare[left]], *b = &items[order[right]];
        rt_steps(rt, 1);
        /* Python asks only "less than", and reversing keeps equal items in their order. */
        bool right_first =
            reverse ? value_compare(rt, a, b, "<") < 0 : value_compare(rt, b, a, "<") < 0;
        order[at++] = right_first ? order[right++] : spare[left++];
    }
    while (left < half)
        order[at++] = spare[left++];
}

const uint32_t *sort_order(struct rt *rt, struct list *l, bool reverse)
{
    uint32_t *order = rt_array(rt, (size_t)l->count + 1, sizeof(*order));
    uint32_t *spare = rt_array(rt, (size_t)l->count + 1, sizeof(*spare));
    for (uint32_t i = 0; i < l->count; i++)
        order[i] = i;
    merge_runs(rt, l->items, order, spare, l->count, reverse);
    return order;
}

struct value fold_case(struct rt *rt, struct value v)
{
    return v.kind == VALUE_STR ? value_str(str_case(rt, v.str, CASE_LOWER)) : v;
}

static struct list *reorder(struct rt *rt, const struct list *l, const uint32_t *order)
{
    struct list *sorted = list_new(rt, l->count);
    for (uint32_t i = 0; i < l->count; i++)
        list_push(rt, sorted, l->items[order[i]]);
    return sorted;
}

/* The sort key of one item: for each of the comma separated paths its value, in a list. */
static struct value sort_key(struct rt *rt, struct value item, struct value attribute, bool fold)
{
    struct list *key = list_new(rt, 1);
    size_t from = 0;
    for (;;) {
        struct value path = attribute;
        const char *comma = NULL;
        if (attribute.kind == VALUE_STR) {
            struct str *s = attribute.str;
            comma = memchr(s->data + from, ',', s->len - from);
            size_t to = comma == NULL ? s->len : (size_t)(comma - s->data);
            path = value_str(str_slice(rt, s, from, to - from));
            from = to + 1;
        }
        struct value v = get_path(rt, item, path, missing());
        list_push(rt, key, fold ? fold_case(rt, v) : v);
        if (comma == NULL)
            return value_list(key);
    }
}

static struct value f_sort(struct rt *rt, struct value in, const struct args *a)
{
    struct value v[3];
    args_bind(rt, a, "sort", "reverse case_sensitive attribute", 0, v);
    struct list *items = list_of(rt, in), *keys = list_new(rt, items->count);
    bool fold = !arg_bool(&v[1], false);
    for (uint32_t i = 0; i < items->count; i++)
        list_push(rt, keys, sort_key(rt, items->items[i], v[2], fold));
    return value_list(reorder(rt, items, sort_order(rt, keys, arg_bool(&v[0], false))));
}

static struct value f_dictsort(struct rt *rt, struct value in, const struct args *a)
{
    struct value v[3];
    args_bind(rt, a, "dictsort", "case_sensitive by reverse", 0, v);
    struct str *by = arg_str(rt, &v[1], str_wrap(rt, "key", 3), "dictsort");
    if (!str_is(by, "key") && !str_is(by, "value"))
        rt_fail(rt, ERR_INVALID, "dictsort sorts by either \"key\" or \"value\"");
    if (in.kind == VALUE_UNDEFINED)
        value_fail_undefined(rt, &in);
    if (in.kind != VALUE_DICT)
        rt_fail(rt, ERR_INVALID, "dictsort needs a dict, not %s", value_type_name(&in));
    struct list *items = list_new(rt, in.dict->count), *keys = list_new(rt, in.dict->count);
    for (uint32_t i = 0; i < in.dict->count; i++) {
        const struct dict_entry *en = &in.dict->entries[i];
        struct value key = str_is(by, "key") ? en->key : en->value;
        list_push(rt, items, tuple_pair(rt, en->key, en->value));
        list_push(rt, keys, arg_bool(&v[0], false) ? key : fold_case(rt, key));
    }
    return value_list(reorder(rt, items, sort_order(rt, keys, arg_bool(&v[2], false))));
}

static struct value extreme(struct rt *rt, struct value in, const struct args *a, bool want_max)
{
    struct value v[2], item, best = missing(), best_key = missing();
    args_bind(rt, a, want_max ? "max" : "min", "case_sensitive attribute", 0, v);
    bool fold = !arg_bool(&v[0], false);
    struct iter *it = iter_of(rt, in);
    while (iter_next(rt, it, &item)) {
        struct value key = get_path(rt, item, v[1], missing());
        if (fold)
            key = fold_case(rt, key);
        if (best.kind != VALUE_MISSING) {
            int c = want_max ? value_compare(rt, &best_key, &key, ">")
                             : value_compare(rt, &key, &best_key, "<");
            if (c >= 0)
                continue;
        }
        best = item;
        best_key = key;
    }
    if (best.kind == VALUE_MISSING)
        return value_undefined_hint(rt, "no aggregated item, the sequence was empty");
    return best;
}

static struct value f_max(struct rt *rt, struct value in, const struct args *a)
{
    return extreme(rt, in, a, true);
}

static struct value f_min(struct rt *rt, struct value in, const struct args *a)
{
    return extreme(rt, in, a, false);
}

/* A tuple of the common value and the items that have it, named .grouper and .list. */
static struct value group_new(struct rt *rt, struct value grouper, struct list *items)
{
    struct value t = tuple_pair(rt, grouper, value_list(items));
    t.list->grouped = true;
    return t;
}

static struct value f_groupby(struct rt *rt, struct value in, const struct args *a)
{
    struct value v[3];
    args_bind(rt, a, "groupby", "attribute default case_sensitive", 1, v);
    struct value dflt = v[1].kind == VALUE_NONE ? missing() : v[1];
    bool fold = !arg_bool(&v[2], false);
    struct list *items = list_of(rt, in), *keys = list_new(rt, items->count);
    for (uint32_t i = 0; i < items->count; i++) {
        struct value key = get_path(rt, items->items[i], v[0], dflt);
        list_push(rt, keys, fold ? fold_case(rt, key) : key);
    }
    const uint32_t *order = sort_order(rt, keys, false);
    struct list *groups = list_new(rt, 0), *group = NULL;
    for (uint32_t i = 0; i < items->count; i++) {
        struct value item = items->items[order[i]];
        if (i == 0 || !value_equal(rt, &keys->items[order[i]], &keys->items[order[i - 1]])) {
            group = list_new(rt, 0);
            list_push(rt, groups, group_new(rt, get_path(rt, item, v[0], dflt), group));
        }
        list_push(rt, group, item);
    }
    return value_list(groups);
}

/* ---- taking parts ---------------------------------------------------------------------------- */

static struct value f_first(struct rt *rt, struct value in, const struct args *a)
{
    struct value item;
    args_bind(rt, a, "first", "", 0, NULL);
    if (iter_next(rt, iter_of(rt, in), &item))
        return item;
    return value_undefined_hint(rt, "no first item, the sequence was empty");
}

static struct value f_last(struct rt *rt, struct value in, const struct args *a)
{
    args_bind(rt, a, "last", "", 0, NULL);
    if (in.kind == VALUE_ITER)
        rt_fail(rt, ERR_INVALID, "last can not be taken of a generator; put `| list` in front");
    if (in.kind == VALUE_STR)
        return get_item(rt, in, value_int(-1));
    struct list *l = list_of(rt, in);
    if (l->count == 0)
        return value_undefined_hint(rt, "no last item, the sequence was empty");
    return l->items[l->count - 1];
}

static struct value f_length(struct rt *rt, struct value in, const struct args *a)
{
    int64_t n;
    args_bind(rt, a, "length", "", 0, NULL);
    if (in.kind == VALUE_LOOP)
        return loop_attr(rt, in, str_wrap(rt, "length", 6));
    if (!value_length(&in, &n))
        rt_fail(rt, ERR_INVALID, "object of type '%s' has no len()", value_type_name(&in));
    return value_int(n);
}

static struct value f_list(struct rt *rt, struct value in, const struct args *a)
{
    args_bind(rt, a, "list", "", 0, NULL);
    return value_list(list_of(rt, in));
}

static struct value f_join(struct rt *rt, struct value in, const struct args *a)
{
    struct value v[2], item;
    args_bind(rt, a, "join", "d attribute", 0, v);
    struct str *sep = v[0].kind == VALUE_MISSING ? str_wrap(rt, "", 0) : value_to_str(rt, &v[0]);
    struct iter *it = iter_of(rt, in);
    struct buf *b = rt_take_scratch(rt);
    bool first = true;
    while (iter_next(rt, it, &item)) {
        if (v[1].kind != VALUE_MISSING)
            item = get_path(rt, item, v[1], missing());
        if (!first)
            buf_append(b, sep->data, sep->len);
        first = false;
        rt_room(rt, b->len);
        value_print(rt, &item, b);
    }
    return value_str(rt_give_str(rt, b));
}

static struct value f_sum(struct rt *rt, struct value in, const struct args *a)
{
    struct value v[2], item;
    args_bind(rt, a, "sum", "attribute start", 0, v);
    struct value total = v[1].kind == VALUE_MISSING ? value_int(0) : v[1];
    if (total.kind == VALUE_STR)
        rt_fail(rt, ERR_INVALID, "sum() can't sum strings; use join");
    struct iter *it = iter_of(rt, in);
    while (iter_next(rt, it, &item)) {
        if (v[0].kind != VALUE_MISSING)
            item = get_path(rt, item, v[0], missing());
        total = op_binary(rt, '+', total, item);
    }
    return total;
}

static struct value f_xmlattr(struct rt *rt, struct value in, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "xmlattr", "autospace", 0, &v);
    if (in.kind != VALUE_DICT)
        rt_fail(rt, ERR_INVALID, "xmlattr needs a dict, not %s", value_type_name(&in));
    struct buf *b = rt_take_scratch(rt);
    for (uint32_t i = 0; i < in.dict->count; i++) {
        struct dict_entry en = in.dict->entries[i];
        if (en.value.kind == VALUE_NONE || en.value.kind == VALUE_UNDEFINED)
            continue;
        struct str *key = str_escape_html(rt, arg_str(rt, &en.key, NULL, "xmlattr"));
        for (uint32_t k = 0; k < key->len; k++) {
            if (strchr(" \t\n\r\f\v/>=", key->data[k]) != NULL)
                rt_fail(rt, ERR_INVALID,
                        "xmlattr: an attribute's name has a character it must not");
        }
        struct str *text = value_to_str(rt, &en.value);
        if (!text->markup)
            text = str_escape_html(rt, text);
        if (b->len > 0 || arg_bool(&v, true))
            buf_puts(b, " ");
        buf_append(b, key->data, key->len);
        buf_puts(b, "=\"");
        buf_append(b, text->data, text->len);
        buf_puts(b, "\"");
    }
    return value_str(rt_give_str(rt, b));
}

const struct filter_def filters_seq[] = {
    {"count", f_length},    {"dictsort", f_dictsort},
    {"first", f_first},     {"groupby", f_groupby},
    {"join", f_join},       {"last", f_last},
    {"length", f_length},   {"list", f_list},
    {"max", f_max},         {"min", f_min},
    {"sort", f_sort},       {"sum", f_sum},
    {"xmlattr", f_xmlattr}, {NULL, NULL},
};

/* ---- all filters ----------------------------------------------------------------------------- */

const struct filter_def *filter_find(const char *name, size_t len)
{
    static const struct filter_def *const all[] = {filters_text, filters_seq, filters_lazy};
    for (size_t i = 0; i < BASE_COUNT(all); i++) {
        for (const struct filter_def *f = all[i]; f->name != NULL; f++) {
            if (strlen(f->name) == len && memcmp(f->name, name, len) == 0)
                return f;
        }
    }
    return NULL;
}
