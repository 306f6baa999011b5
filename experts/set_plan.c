/* The layout of a weight set: which tensor goes into which segment, and where. A pure function of
 * the GGUF header, so that equal files give equal segments whoever imports them, and files that
 * share tensors share segments. */
#include "experts/gguf.h"
#include "experts/set.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LORA_RANK_MAX 4096u
static const char *const lora_suffix[2] = {".lora_a", ".lora_b"};

struct planner {
    struct set_meta *s;
    const struct gguf *g;
    size_t cap; /* of segment arrays */
    struct err *e;
    enum err_code rc;
};

static void add_segment(struct planner *p, enum memtier_kind kind, uint64_t bytes)
{
    struct set_meta *s = p->s;
    if (s->segments == p->cap) {
        p->cap = p->cap ? p->cap * 2 : 64;
        s->segment_bytes = mem_grow(s->segment_bytes, p->cap, sizeof(*s->segment_bytes));
        s->segment_kind = mem_grow(s->segment_kind, p->cap, sizeof(*s->segment_kind));
    }
    s->segment_bytes[s->segments] = bytes;
    s->segment_kind[s->segments++] = kind;
}

static struct set_tensor *add_tensor(struct planner *p, const struct gguf_tensor *t, bool is_vector)
{
    struct set_tensor *st = &p->s->tensors[p->s->tensors_count++];
    st->name = t->name;
    st->layer = model_split_name(t->name, &st->slot);
    st->file_type = t->type;
    st->is_vector = is_vector;
    st->type = is_vector ? RDU_F32 : t->type;
    /* Shapes were checked against the model's, whose sizes are 32 bits wide. */
    st->cols = (uint32_t)t->dim[0];
    st->rows = (uint32_t)t->dim[1];
    st->runs = 1;
    st->bytes = is_vector ? (uint64_t)st->cols * sizeof(float)
                          : rdu_pack_bytes(st->type, st->rows, st->cols);
    if (st->bytes == 0 && p->rc == ERR_OK)
        p->rc =
            err_set(p->e, ERR_CORRUPT, "%s: tensor '%s' cannot be packed", p->g->label, t->name);
    return st;
}

/* Put a tensor at the end of the open segment, which is the last one. */
static void append_whole(struct planner *p, const char *name, bool is_vector)
{
    struct set_tensor *st = add_tensor(p, gguf_find_tensor(p->g, name), is_vector);
    uint64_t *end = &p->s->segment_bytes[p->s->segments - 1];
    st->segment = p->s->segments - 1;
    st->offset = *end;
    *end = (*end + st->bytes + SET_ALIGN - 1) & ~(uint64_t)(SET_ALIGN - 1);
}

/* Embedding and head go into segments of at most SET_RUN_BYTES, so that the first rows can be used,
 * and evicted, before the last ones have come. */
static void append_runs(struct planner *p, const char *name)
{
    struct set_tensor *st = add_tensor(p, gguf_find_tensor(p->g, name), false);
    if (p->rc != ERR_OK)
        return;
    size_t group = rdu_pack_bytes(st->type, RDU_GROUP, st->cols);
    uint32_t groups = (uint32_t)BASE_MIN(BASE_MAX(SET_RUN_BYTES / group, (size_t)1),
                                         (size_t)st->rows / RDU_GROUP + 1);
    st->run_rows = groups * RDU_GROUP;
    st->segment = p->s->segments;
    st->runs = (st->rows + st->run_rows - 1) / st->run_rows;
    for (uint32_t i = 0; i < st->runs; i++) {
        uint32_t rows = BASE_MIN(st->run_rows, st->rows - i * st->run_rows);
        add_segment(p, MEMTIER_KIND_ROWS, rdu_pack_bytes(st->type, rows, st->cols));
    }
}

static void plan_layer(struct planner *p, uint32_t n, const struct model_slot *slot, size_t slots)
{
    char name[128];
    add_segment(p, MEMTIER_KIND_LAYER, 0);
    for (size_t i = 0; i < slots && p->rc == ERR_OK; i++) {
        snprintf(name, sizeof(name), "blk.%u.%s", n, slot[i].name);
        append_whole(p, name, slot[i].is_vector);
    }
}

static void plan_model(struct planner *p, const struct model_shape *shape)
{
    struct set_meta *s = p->s;
    struct model_slot slot[MODEL_SLOTS_MAX];
    append_runs(p, "token_embd.weight");
    s->embed_runs = s->segments;
    s->layer_segment = s->segments;
    size_t slots = model_layer_slots(shape, slot);
    for (uint32_t n = 0; n < shape->layers && p->rc == ERR_OK; n++)
        plan_layer(p, n, slot, slots);
    s->norm_segment = s->segments;
    add_segment(p, MEMTIER_KIND_NORM, 0);
    slots = model_global_slots(shape, slot);
    for (size_t i = 0; i < slots && p->rc == ERR_OK; i++)
        if (slot[i].is_vector)
            append_whole(p, slot[i].name, true);
    s->head_runs = s->embed_runs;
    if (!shape->tied_head && p->rc == ERR_OK) {
        s->head_segment = s->segments;
        append_runs(p, "output.weight");
        s->head_runs = s->segments - s->head_segment;
    }
}

static struct set_meta *set_new(const struct gguf *g)
{
    struct set_meta *s = mem_alloc(sizeof(*s));
    s->tensors = mem_array(gguf_tensors(g) + 1, sizeof(*s->tensors));
    return s;
}

static enum err_code finish(struct planner *p, struct gguf **g, struct set_meta **ret)
{
    if (p->rc != ERR_OK) {
        set_close(&p->s);
        return p->rc;
    }
    p->s->gguf = *g;
    *g = NULL;
    set_index(p->s);
    *ret = p->s;
    return ERR_OK;
}

enum err_code set_plan_model(struct gguf **g, const struct model_shape *shape,
                             struct set_meta **ret, struct err *e)
{
    struct planner p = {.s = set_new(*g), .g = *g, .e = e, .rc = ERR_OK};
    p.s->shape = *shape;
    plan_model(&p, shape);
    return finish(&p, g, ret);
}

uint64_t set_bytes(const struct set_meta *s)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < s->segments; i++)
        n += s->segment_bytes[i];
    return n;
}

/* ---- adapters ---- */

static enum err_code check_adapter_keys(const struct gguf *g, const struct model_shape *base,
                                        double *ret_alpha, struct err *e)
{
    char shown[96];
    struct gguf_str s;
    const char *label = g->label;
    if (gguf_get_str(g, "general.type", &s, NULL) != ERR_OK || !gguf_str_is(s, "adapter"))
        return err_set(e, ERR_INVALID, "%s is not an adapter (general.type): add it without a base",
                       label);
    if (gguf_get_str(g, "adapter.type", &s, NULL) != ERR_OK || !gguf_str_is(s, "lora"))
        return err_set(e, ERR_UNSUPPORTED, "%s: adapter.type is not 'lora'", label);
    enum err_code rc = gguf_get_str(g, "general.architecture", &s, e);
    if (rc != ERR_OK)
        return rc == ERR_NOT_FOUND ? err_set(e, ERR_CORRUPT,
                                             "%s: required key 'general.architecture' "
                                             "is missing",
                                             label)
                                   : rc;
    if (!gguf_str_is(s, model_arch_name(base->arch)))
        return err_set(e, ERR_INVALID, "%s is an adapter for architecture '%s', the base is '%s'",
                       label, gguf_show(s.data, s.len, shown), model_arch_name(base->arch));
    if (gguf_has(g, "adapter.alora.invocation_tokens"))
        return err_set(e, ERR_UNSUPPORTED, "%s: activated LoRA (adapter.alora) cannot be run",
                       label);
    *ret_alpha = 0;
    if (!gguf_has(g, "adapter.lora.alpha"))
        return ERR_OK;
    rc = gguf_get_f64(g, "adapter.lora.alpha", ret_alpha, e);
    if (rc == ERR_OK && !(*ret_alpha >= 0 && *ret_alpha <= 1e6))
        rc = err_set(e, ERR_CORRUPT, "%s: adapter.lora.alpha is %g; it must be from 0 to 1e6",
                     label, *ret_alpha);
    return rc;
}

static bool has_suffix(const char *s, const char *suffix)
{
    size_t n = strlen(s), k = strlen(suffix);
    return n > k && strcmp(s + n - k, suffix) == 0;
}

/* Where a pair's weight is in the layer's list; NULL if it is not a matrix of some layer. */
static const struct model_slot *adapted_slot(const char *name, size_t name_len, uint32_t layers,
                                             const struct model_slot *slot, size_t slots)
{
    const char *in_layer;
    int32_t n = model_split_name(name, &in_layer);
    if (n < 0 || n >= (int32_t)layers)
        return NULL;
    size_t len = name_len - (size_t)(in_layer - name);
    for (size_t i = 0; i < slots; i++)
        if (!slot[i].is_vector && strlen(slot[i].name) == len &&
            memcmp(slot[i].name, in_layer, len) == 0)
            return &slot[i];
    return NULL;
}

static enum err_code check_pair(const struct gguf *g, const struct gguf_tensor *a,
                                const struct gguf_tensor *b, const struct model_slot *slot,
                                struct err *e)
{
    uint64_t rank = a->dim[1];
    bool flat = a->dim[2] == 1 && a->dim[3] == 1 && b->dim[2] == 1 && b->dim[3] == 1;
    if (!flat || rank != b->dim[0] || a->dim[0] != slot->cols || b->dim[1] != slot->rows)
        return err_set(e, ERR_CORRUPT,
                       "%s: '%s' [%llu, %llu] and its lora_b [%llu, %llu] do not fit the base's %s "
                       "[%u, %u]: was the adapter made for another base?",
                       g->label, a->name, (unsigned long long)a->dim[0], (unsigned long long)rank,
                       (unsigned long long)b->dim[0], (unsigned long long)b->dim[1], slot->name,
                       slot->cols, slot->rows);
    if (rank > LORA_RANK_MAX)
        return err_set(e, ERR_UNSUPPORTED, "%s: '%s' has rank %llu; the limit is %u", g->label,
                       a->name, (unsigned long long)rank, LORA_RANK_MAX);
    return ERR_OK;
}

/* Every tensor must be half of a pair for a matrix of the base. */
static enum err_code check_adapter_tensors(const struct gguf *g, const struct model_shape *base,
                                           struct err *e)
{
    struct model_slot slot[MODEL_SLOTS_MAX];
    size_t slots = model_layer_slots(base, slot);
    if (gguf_tensors(g) == 0)
        return err_set(e, ERR_CORRUPT, "%s: an adapter without tensors", g->label);
    for (size_t i = 0; i < gguf_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        char shown[96], other[GGUF_NAME_BYTES_MAX + 1];
        gguf_show(t->name, strlen(t->name), shown);
        bool is_a = has_suffix(t->name, lora_suffix[0]), is_b = has_suffix(t->name, lora_suffix[1]);
        if (!is_a && !is_b)
            return err_set(e, ERR_UNSUPPORTED, "%s: tensor '%s' is neither lora_a nor lora_b",
                           g->label, shown);
        size_t len = strlen(t->name) - strlen(lora_suffix[0]);
        const struct model_slot *s = adapted_slot(t->name, len, base->layers, slot, slots);
        if (!s)
            return err_set(e, ERR_UNSUPPORTED,
                           "%s: tensor '%s' adapts no matrix of the base's layers "
                           "(embedding, head, norms and biases cannot be adapted)",
                           g->label, shown);
        snprintf(other, sizeof(other), "%.*s%s", (int)len, t->name, lora_suffix[is_a]);
        const struct gguf_tensor *pair = gguf_find_tensor(g, other);
        if (!pair)
            return err_set(e, ERR_CORRUPT, "%s: tensor '%s' has no partner '%s'", g->label, shown,
                           other);
        enum err_code rc = is_a ? check_pair(g, t, pair, s, e) : ERR_OK;
        if (rc != ERR_OK)
            return rc;
    }
    return ERR_OK;
}

static void plan_adapter(struct planner *p, const struct model_shape *base)
{
    struct model_slot slot[MODEL_SLOTS_MAX];
    size_t slots = model_layer_slots(base, slot);
    add_segment(p, MEMTIER_KIND_ADAPTER, 0);
    for (uint32_t n = 0; n < base->layers; n++) {
        for (size_t i = 0; i < slots; i++) {
            for (unsigned half = 0; half < 2 && p->rc == ERR_OK; half++) {
                char name[160];
                snprintf(name, sizeof(name), "blk.%u.%s%s", n, slot[i].name, lora_suffix[half]);
                if (gguf_find_tensor(p->g, name))
                    append_whole(p, name, false);
            }
        }
    }
}

enum err_code set_plan_adapter(struct gguf **g, const struct model_shape *base,
                               struct set_meta **ret, struct err *e)
{
    double alpha;
    enum err_code rc = check_adapter_keys(*g, base, &alpha, e);
    if (rc == ERR_OK)
        rc = check_adapter_tensors(*g, base, e);
    if (rc != ERR_OK)
        return rc;
    struct planner p = {.s = set_new(*g), .g = *g, .e = e, .rc = ERR_OK};
    p.s->is_adapter = true;
    p.s->adapter_alpha = alpha;
    plan_adapter(&p, base);
    return finish(&p, g, ret);
}
