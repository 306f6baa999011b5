/* Why a label: the n-grams of the last turn that pushed its logit up more than the others'. */
#include "router/decide.h"

#include <stdlib.h>
#include <string.h>

struct collector {
    const struct router_head *h;
    struct router_scratch *s;
    size_t label_idx, cap, count;
    struct router_evidence *list; /* [cap], heaviest first */
};

/* Contribution to the label's logit minus the mean over labels: what moves all alike decides
 * nothing. */
static double contribution(const struct collector *c, uint32_t idx)
{
    const int8_t *row = head_row(c->h, idx);
    if (!row)
        return 0.0;
    double sum = 0.0;
    for (size_t i = 0; i < c->s->labels; i++)
        sum += (double)c->h->scale[i] * row[i];
    double own = (double)c->h->scale[c->label_idx] * row[c->label_idx];
    return (double)text_value(c->s->text, idx) * (own - sum / (double)c->s->labels);
}

static bool listed(const struct collector *c, const char *ngram)
{
    for (size_t i = 0; i < c->count; i++)
        if (strcmp(c->list[i].ngram, ngram) == 0)
            return true;
    return false;
}

static void collect(void *ctx, uint32_t idx, const char *ngram, size_t len)
{
    struct collector *c = ctx;
    struct router_evidence item = {.weight = contribution(c, idx)};
    if (item.weight <= 0.0 || (c->count == c->cap && item.weight <= c->list[c->cap - 1].weight))
        return;
    len = utf8_complete_prefix(ngram, BASE_MIN(len, sizeof(item.ngram) - 1));
    memcpy(item.ngram, ngram, len);
    if (listed(c, item.ngram))
        return;
    size_t at = c->count < c->cap ? c->count++ : c->cap - 1;
    for (; at > 0 && c->list[at - 1].weight < item.weight; at--)
        c->list[at] = c->list[at - 1];
    c->list[at] = item;
}

size_t router_explain(const struct router_head *h, struct router_scratch *s,
                      const struct router_turn *turns, size_t turns_count, int label_idx,
                      struct router_evidence *ret, size_t cap)
{
    if (!h || !s || cap == 0 || label_idx < 0 || (size_t)label_idx >= s->labels)
        return 0;
    struct collector c = {.h = h, .s = s, .label_idx = (size_t)label_idx, .cap = cap, .list = ret};
    for (size_t i = turns_count; i-- > 0;) {
        size_t count;
        text_vector(s->text, turns[i].text, turns[i].len, &count);
        if (text_word_count(s->text) == 0)
            continue;
        text_each_ngram(s->text, turns[i].text, turns[i].len, collect, &c);
        return c.count;
    }
    return 0;
}
