/* Workloads from shapes alone: the transformers of the SN40L paper's Table III and the operators of one
 * of their layers, with what each moves and does.
 *
 * A list of operators and not a graph of rdu/ir: the IR has no LayerNorm, ungated MLP, ALiBi, backward
 * pass or complex arithmetic, which half of these workloads need, and timing needs no bodies. The
 * operators are those of a tensor-parallel (Megatron-style) layer, with the matrices that share an input
 * side by side: that is how every such code runs on eight sockets. Attention is taken apart into scores,
 * softmax and context, as an unfused framework does it. */
#include "rdu/timing/timing.h"

#include <string.h>

static const struct rdu_shape clip_vit_l = {
    .name = "clip-vit-l-336", .layers = 24, .width = 1024, .heads = 16, .kv_heads = 16, .head_dim = 64,
    .ffn = 4096, .weight_bytes = 2, .density = 1, .sparse_share = 1};

/* Layers, widths and heads as in each model's published configuration; BF16. */
static const struct rdu_shape shapes[] = {
    {.name = "llama2-7b", .layers = 32, .width = 4096, .heads = 32, .kv_heads = 32, .head_dim = 128,
     .ffn = 11008, .vocab = 32000, .gated = true, .rotary = true, .weight_bytes = 2, .density = 1,
     .sparse_share = 1},
    {.name = "llama2-70b", .layers = 80, .width = 8192, .heads = 64, .kv_heads = 8, .head_dim = 128,
     .ffn = 28672, .vocab = 32000, .gated = true, .rotary = true, .weight_bytes = 2, .density = 1,
     .sparse_share = 1},
    {.name = "mistral-7b", .layers = 32, .width = 4096, .heads = 32, .kv_heads = 8, .head_dim = 128,
     .ffn = 14336, .vocab = 32000, .gated = true, .rotary = true, .weight_bytes = 2, .density = 1,
     .sparse_share = 1},
    {.name = "falcon-40b", .layers = 60, .width = 8192, .heads = 128, .kv_heads = 8, .head_dim = 64,
     .ffn = 32768, .vocab = 65024, .rotary = true, .parallel = true, .weight_bytes = 2, .density = 1,
     .sparse_share = 1},
    {.name = "bloom-176b", .layers = 70, .width = 14336, .heads = 112, .kv_heads = 112,
     .head_dim = 128, .ffn = 57344, .vocab = 250880, .tied = true, .weight_bytes = 2, .density = 1,
     .sparse_share = 1},
    /* 87.5 % of the layers' weights are gone. That what is left runs at a quarter of the dense rate is
     * a guess: nothing is published, and it must lie between 1/8 (no gain) and 1. */
    {.name = "sparsegpt-13b", .layers = 40, .width = 5120, .heads = 40, .kv_heads = 40,
     .head_dim = 128, .ffn = 20480, .vocab = 50257, .tied = true, .weight_bytes = 2, .density = 0.125,
     .sparse_share = 0.25},
    /* The two small matrices between tower and language model are left out: 0.05 % of the work. */
    {.name = "llava-1.5-7b", .layers = 32, .width = 4096, .heads = 32, .kv_heads = 32,
     .head_dim = 128, .ffn = 11008, .vocab = 32000, .gated = true, .rotary = true, .weight_bytes = 2,
     .density = 1, .sparse_share = 1, .tower = &clip_vit_l, .tower_tokens = 577},
};

const struct rdu_shape *rdu_shape_find(const char *name)
{
    for (size_t i = 0; i < BASE_COUNT(shapes); i++) {
        if (strcmp(shapes[i].name, name) == 0)
            return &shapes[i];
    }
    return NULL;
}

static double kv_width(const struct rdu_shape *s)
{
    return (double)s->kv_heads * s->head_dim;
}

static double q_width(const struct rdu_shape *s)
{
    return (double)s->heads * s->head_dim;
}

double rdu_shape_weights(const struct rdu_shape *s)
{
    double d = s->width;
    double layer = d * (q_width(s) + 2 * kv_width(s)) + q_width(s) * d + (s->gated ? 3 : 2) * d * s->ffn;
    double sum = s->layers * (layer * s->density + 2 * d) + d + (s->tied ? 1 : 2) * d * s->vocab;
    return sum + (s->tower ? rdu_shape_weights(s->tower) : 0);
}

double rdu_shape_bytes(const struct rdu_shape *s)
{
    return rdu_shape_weights(s) * s->weight_bytes;
}

double rdu_shape_kv_bytes(const struct rdu_shape *s)
{
    return 2.0 * s->layers * kv_width(s) * TIMING_ACT_BYTES;
}

/* ---- passes ---- */

struct rdu_pass rdu_pass_prefill(double seqs, double tokens_each)
{
    return (struct rdu_pass){.seqs = seqs,
                             .tokens = seqs * tokens_each,
                             .outs = seqs,
                             .pairs = seqs * tokens_each * (tokens_each + 1) / 2,
                             .square = seqs * tokens_each * tokens_each,
                             .kv_tokens = seqs * tokens_each};
}

struct rdu_pass rdu_pass_decode(double seqs, double context_each)
{
    return (struct rdu_pass){.seqs = seqs,
                             .tokens = seqs,
                             .outs = seqs,
                             .pairs = seqs * context_each,
                             .square = seqs * context_each,
                             .kv_tokens = seqs * context_each};
}

void rdu_pass_add(struct rdu_pass *p, const struct rdu_pass *more)
{
    p->seqs += more->seqs;
    p->tokens += more->tokens;
    p->outs += more->outs;
    p->pairs += more->pairs;
    p->square += more->square;
    p->kv_tokens += more->kv_tokens;
}

/* ---- operators ---- */

struct list {
    const struct rdu_shape *s;
    const struct rdu_pass *p;
    struct timing_op *ops;
    size_t count;
};

static struct timing_op *add(struct list *l, const char *name)
{
    struct timing_op *o = &l->ops[l->count++];
    *o = (struct timing_op){.name = name};
    return o;
}

/* in and out are elements per token. */
static void add_simple(struct list *l, const char *name, double flops, double in, double out)
{
    struct timing_op *o = add(l, name);
    double t = l->p->tokens;
    o->flops = o->fused_flops = flops * t;
    o->in_bytes = in * t * TIMING_ACT_BYTES;
    o->out_bytes = out * t * TIMING_ACT_BYTES;
}

static void add_norm(struct list *l)
{
    double d = l->s->width;
    add_simple(l, "norm", 5 * d, d, d);
    struct timing_op *o = &l->ops[l->count - 1];
    o->weight_bytes = d * l->s->weight_bytes;
    o->saved_bytes = o->out_bytes;
}

static struct timing_op *add_linear(struct list *l, const char *name, double in, double out)
{
    add_simple(l, name, 2 * in * out * l->s->density / l->s->sparse_share, in, out);
    struct timing_op *o = &l->ops[l->count - 1];
    o->weight_bytes = in * out * l->s->weight_bytes * l->s->density;
    o->saved_bytes = o->out_bytes;
    o->matmul = true;
    return o;
}

/* A product of Q or of the probabilities with the cache: `kv` is how much of it is read. */
static void add_product(struct list *l, const char *name, bool scores, double kv)
{
    struct timing_op *o = add(l, name);
    double q = l->p->tokens * q_width(l->s) * TIMING_ACT_BYTES;
    double map = l->p->square * l->s->heads * TIMING_ACT_BYTES;
    o->flops = 2 * l->p->square * q_width(l->s);
    o->fused_flops = 2 * l->p->pairs * q_width(l->s);
    o->in_bytes = (scores ? q : map) + kv;
    o->out_bytes = scores ? map : q;
    o->kv_read = l->p->kv_tokens * kv_width(l->s) * TIMING_ACT_BYTES;
    o->saved_bytes = scores ? 0 : q;
    o->matmul = true;
}

static void add_attention(struct list *l)
{
    const struct rdu_shape *s = l->s;
    const struct rdu_pass *p = l->p;
    double cache = p->kv_tokens * kv_width(s) * TIMING_ACT_BYTES;
    struct timing_op *o = add_linear(l, "qkv", s->width, q_width(s) + 2 * kv_width(s));
    o->kv_write = 2 * p->tokens * kv_width(s) * TIMING_ACT_BYTES;
    if (s->rotary)
        add_simple(l, "rope", 3 * (q_width(s) + kv_width(s)), q_width(s) + kv_width(s),
                   q_width(s) + kv_width(s));
    if (s->kv_heads < s->heads) { /* frameworks copy K and V once per head of Q */
        o = add(l, "repeat_kv");
        o->in_bytes = 2 * cache;
        o->out_bytes = 2 * cache * s->heads / s->kv_heads;
        cache *= (double)s->heads / s->kv_heads;
    }
    add_product(l, "scores", true, cache);
    o = add(l, "softmax");
    o->flops = 5 * p->square * s->heads;
    o->fused_flops = 5 * p->pairs * s->heads;
    o->in_bytes = o->out_bytes = p->square * s->heads * TIMING_ACT_BYTES;
    add_product(l, "context", false, cache);
    add_linear(l, "attn_out", q_width(s), s->width);
}

static void add_mlp(struct list *l)
{
    double f = l->s->ffn;
    add_linear(l, l->s->gated ? "gate_up" : "up", l->s->width, l->s->gated ? 2 * f : f);
    add_simple(l, l->s->gated ? "silu_mul" : "gelu", 6 * f, l->s->gated ? 2 * f : f, f);
    l->ops[l->count - 1].saved_bytes = l->ops[l->count - 1].out_bytes;
    add_linear(l, "down", f, l->s->width);
}

/* The sockets hold partial sums of the last matmul: they must be added up. */
static void reduce_last(struct list *l)
{
    l->ops[l->count - 1].reduce_bytes = l->p->tokens * l->s->width * TIMING_ACT_BYTES;
}

size_t timing_layer_ops(const struct rdu_shape *s, const struct rdu_pass *p,
                        struct timing_op ret[TIMING_OPS_MAX])
{
    struct list l = {.s = s, .p = p, .ops = ret};
    double d = s->width;
    add_norm(&l);
    if (s->parallel) {
        add_norm(&l);
        add_attention(&l);
        add_mlp(&l);
        add_simple(&l, "add", d, 2 * d, d);
        reduce_last(&l); /* both halves at once */
        add_simple(&l, "add", d, 2 * d, d);
        return l.count;
    }
    add_attention(&l);
    reduce_last(&l);
    add_simple(&l, "add", d, 2 * d, d);
    add_norm(&l);
    add_mlp(&l);
    reduce_last(&l);
    add_simple(&l, "add", d, 2 * d, d);
    return l.count;
}
