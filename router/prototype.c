/* Experts added by example, without training. A prompt's two nearest examples are compared with its
 * two nearest prompts among the head's samples of everything else: raw similarity would be fooled
 * by any long English sentence, the difference is not. Measured with each zoo expert taken out of
 * the training and given back with five examples; numbers in the README. */
#include "router/decide.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NEAREST 2
/* How much farther the examples may be than the samples: there are five of the one and a thousand
 * of the other, so the nearest sample is closer by chance. */
#define MARGIN 0.1f
#define STEEPNESS 20.0

struct prototype {
    char name[ROUTER_NAME_MAX];
    float *vectors; /* [count, width] */
    size_t count;
    int label_idx; /* of the head if it has one of this name: its samples do not count against it */
};

struct router_prototypes {
    const struct router_head *head;
    struct prototype *items;
    size_t count;
};

struct router_prototypes *router_prototypes_open(const struct router_head *h)
{
    struct router_prototypes *p = mem_alloc(sizeof(*p));
    p->head = h;
    return p;
}

void router_prototypes_close(struct router_prototypes **p)
{
    if (!*p)
        return;
    for (size_t i = 0; i < (*p)->count; i++)
        free((*p)->items[i].vectors);
    free((*p)->items);
    free(*p);
    *p = NULL;
}

enum err_code router_prototypes_add(struct router_prototypes *p, const char *name,
                                    const struct router_encoder *encoder,
                                    const struct router_turn *texts, size_t count, int *ret_idx,
                                    struct err *e)
{
    const struct head_header *header = &p->head->header;
    if (!encoder || header->width == 0 || encoder->width != header->width ||
        encoder->id != header->encoder_id)
        return err_set(
            e, ERR_UNSUPPORTED,
            "expert '%.60s' has examples, which need a router head with an encoder stage "
            "and its encoder (router.encoder)",
            name);
    if (count == 0)
        return err_set(e, ERR_INVALID, "expert '%.60s' has no examples", name);
    struct prototype item = {.count = count, .label_idx = -1};
    snprintf(item.name, sizeof(item.name), "%s", name);
    for (size_t i = 0; i < header->labels; i++)
        if (strcmp(p->head->labels[i], name) == 0)
            item.label_idx = (int)i;
    item.vectors = mem_array(count * header->width, sizeof(*item.vectors));
    enum err_code code = encoder->encode(encoder->ctx, texts, count, item.vectors, e);
    if (code != ERR_OK) {
        free(item.vectors);
        return code;
    }
    p->items = mem_grow(p->items, p->count + 1, sizeof(*p->items));
    *ret_idx = (int)p->count;
    p->items[p->count++] = item;
    return ERR_OK;
}

size_t router_prototypes_count(const struct router_prototypes *p)
{
    return p->count;
}

const char *router_prototypes_name(const struct router_prototypes *p, size_t idx)
{
    return idx < p->count ? p->items[idx].name : "";
}

/* The NEAREST largest values seen. */
struct nearest {
    float value[NEAREST];
    size_t seen;
};

static void nearest_add(struct nearest *n, float v)
{
    n->seen++;
    for (size_t i = 0; i < NEAREST; i++)
        if (v > n->value[i]) {
            float out = n->value[i];
            n->value[i] = v;
            v = out;
        }
}

static float nearest_mean(const struct nearest *n)
{
    size_t count = BASE_MIN(n->seen, (size_t)NEAREST);
    float sum = 0.0f;
    for (size_t i = 0; i < count; i++)
        sum += n->value[i];
    return count > 0 ? sum / (float)count : -1.0f;
}

static float dot(const float *a, const float *b, size_t n)
{
    float lane[16] = {0}, sum = 0.0f;
    for (size_t i = 0; i < n; i++)
        lane[i % 16] += a[i] * b[i];
    for (size_t i = 0; i < 16; i++)
        sum += lane[i];
    return sum;
}

static float near_samples(const struct router_head *h, const float *vector, int label_idx)
{
    size_t width = h->header.width;
    struct nearest n = {.value = {-1.0f, -1.0f}};
    for (size_t s = 0; s < h->header.samples; s++) {
        const int8_t *q = h->samples + s * width;
        float lane[16] = {0}, sum = 0.0f;
        if ((int)h->sample_of[s] == label_idx)
            continue;
        for (size_t i = 0; i < width; i++)
            lane[i % 16] += vector[i] * (float)q[i];
        for (size_t i = 0; i < 16; i++)
            sum += lane[i];
        nearest_add(&n, sum * h->header.sample_scale);
    }
    return nearest_mean(&n);
}

int prototypes_match(const struct router_prototypes *p, const float *vector, double *ret_confidence)
{
    size_t width = p->head->header.width;
    int best = -1;
    float best_gain = 0.0f;
    for (size_t i = 0; i < p->count; i++) {
        struct nearest n = {.value = {-1.0f, -1.0f}};
        for (size_t k = 0; k < p->items[i].count; k++)
            nearest_add(&n, dot(vector, p->items[i].vectors + k * width, width));
        float gain =
            nearest_mean(&n) - near_samples(p->head, vector, p->items[i].label_idx) + MARGIN;
        if (gain > best_gain) {
            best_gain = gain;
            best = (int)i;
        }
    }
    *ret_confidence = 1.0 / (1.0 + exp(-STEEPNESS * (double)best_gain));
    return best;
}
