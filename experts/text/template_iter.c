/* Iteration: over containers, and generators that other code makes by giving a `next`. Generators
 * are lazy as Jinja's are: what a template changes between two items is seen by the next one. */
#include "experts/text/template_priv.h"
#include "experts/text/text_utf8.h"

#include <string.h>

static bool next_list(struct rt *rt, struct iter *it, struct value *ret)
{
    if (it->pos >= it->source.list->count)
        return false;
    *ret = it->source.list->items[it->pos++];
    return true;
}

static bool next_char(struct rt *rt, struct iter *it, struct value *ret)
{
    struct str *s = it->source.str;
    if (it->pos >= s->len)
        return false;
    size_t step = text_utf8_step(s->data[it->pos]);
    struct str *c = str_slice(rt, s, it->pos, step);
    c->markup = false;
    *ret = value_str(c);
    it->pos += (uint32_t)step;
    return true;
}

static struct value view_item(struct rt *rt, const struct dict *d, enum view_kind kind,
                              uint32_t pos)
{
    const struct dict_entry *en = &d->entries[pos];
    if (kind == VIEW_KEYS)
        return en->key;
    if (kind == VIEW_VALUES)
        return en->value;
    return tuple_pair(rt, en->key, en->value);
}

static bool next_view(struct rt *rt, struct iter *it, struct value *ret)
{
    const struct view *v = it->source.view;
    if (it->pos >= v->dict->count)
        return false;
    *ret = view_item(rt, v->dict, v->kind, it->pos++);
    return true;
}

static bool next_key(struct rt *rt, struct iter *it, struct value *ret)
{
    if (it->pos >= it->source.dict->count)
        return false;
    *ret = it->source.dict->entries[it->pos++].key;
    return true;
}

static bool next_range(struct rt *rt, struct iter *it, struct value *ret)
{
    const struct range *r = it->source.range;
    if (it->pos >= r->count)
        return false;
    *ret = value_int(r->start + r->step * it->pos++);
    return true;
}

static bool next_nothing(struct rt *rt, struct iter *it, struct value *ret)
{
    return false;
}

struct iter *iter_of(struct rt *rt, struct value v)
{
    if (v.kind == VALUE_ITER)
        return v.iter;
    struct iter *it = rt_alloc(rt, sizeof(*it));
    it->source = v;
    it->name = "iterator";
    switch (v.kind) {
    case VALUE_UNDEFINED:
        it->next = next_nothing;
        return it;
    case VALUE_LIST:
    case VALUE_TUPLE:
        it->next = next_list;
        return it;
    case VALUE_STR:
        it->next = next_char;
        return it;
    case VALUE_DICT:
        it->next = next_key;
        return it;
    case VALUE_VIEW:
        it->next = next_view;
        return it;
    case VALUE_RANGE:
        it->next = next_range;
        return it;
    default:
        rt_fail(rt, ERR_INVALID, "'%s' object is not iterable", value_type_name(&v));
    }
}

bool value_iterable(const struct value *v)
{
    return v->kind == VALUE_UNDEFINED || v->kind == VALUE_LIST || v->kind == VALUE_TUPLE ||
           v->kind == VALUE_STR || v->kind == VALUE_DICT || v->kind == VALUE_VIEW ||
           v->kind == VALUE_RANGE || v->kind == VALUE_ITER || v->kind == VALUE_LOOP;
}

bool iter_next(struct rt *rt, struct iter *it, struct value *ret)
{
    if (it->ended)
        return false;
    rt_steps(rt, 1);
    rt_enter(rt);
    if (!it->next(rt, it, ret))
        it->ended = true;
    rt_leave(rt);
    return !it->ended;
}

struct list *list_of(struct rt *rt, struct value v)
{
    int64_t length = 0;
    struct iter *it = iter_of(rt, v);
    struct list *l = list_new(rt, value_length(&v, &length) ? (size_t)length : 0);
    struct value item;
    while (iter_next(rt, it, &item))
        list_push(rt, l, item);
    return l;
}

struct value value_iter(struct iter *it)
{
    return (struct value){.kind = VALUE_ITER, .iter = it};
}
