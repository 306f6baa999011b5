/* One pass over a workload: operators to kernels, kernels to node time.
 *
 * Unfused, every operator is a kernel with its own launch and all its traffic. Fused, a layer is one
 * kernel (SN40L paper VI-C): only the layer's input and output, its weights and the KV cache touch HBM.
 * A layer is cut where that does not fit the sockets' SRAM: when there are more tokens than one tile,
 * weights stay in SRAM for all tiles, and every stage has two buffers of a tile. */
#include "rdu/timing/timing.h"

enum { TILE_TOKENS = 128 };

size_t timing_cut(const struct rdu_chip *chip, const struct rdu_pass *p, const struct timing_op *ops,
                  size_t count, size_t cut[TIMING_OPS_MAX])
{
    double room = chip->socket_sram_bytes * chip->efficiency_pcu_share_fused;
    double tiles = BASE_MAX(p->tokens / TILE_TOKENS, 1), used = 0;
    size_t kernels = 0;
    for (size_t i = 0; i < count; i++) {
        double stay = p->tokens > TILE_TOKENS ? ops[i].weight_bytes * (p->train ? 2 : 1) : 0;
        double need = (stay + 2 * ops[i].out_bytes / tiles) / chip->node_sockets;
        if (i == 0 || used + need > room) {
            cut[kernels++] = i;
            used = 0;
        }
        used += need;
    }
    return kernels;
}

/* One launch of `times` kernels that are all alike. */
static void charge(const struct rdu_chip *chip, const struct rdu_work *w, enum rdu_level level,
                   double times, struct rdu_clock *c)
{
    struct rdu_clock one = {0};
    rdu_time_kernel(chip, w, level != RDU_LEVEL_UNFUSED, &one);
    if (level != RDU_LEVEL_LOOPED)
        rdu_time_launch(chip, level, &one);
    rdu_clock_add(c, &one, times);
}


/* Between unfused kernels a collective stands alone. */
static void charge_reduce(const struct rdu_chip *chip, double bytes, double times, struct rdu_clock *c)
{
    struct rdu_work w = rdu_time_collective(chip, RDU_ALL_REDUCE, bytes);
    c->s[RDU_COST_P2P] += times * (w.hops * chip->socket_p2p_hop_s +
                                   w.p2p_bytes / chip->socket_p2p_bytes_per_s);
    c->p2p_bytes += times * w.p2p_bytes * chip->node_sockets;
}

static void unfused_layer(const struct rdu_chip *chip, const struct rdu_pass *p,
                          const struct timing_op *ops, size_t count, struct rdu_clock *c)
{
    double n = chip->node_sockets;
    for (size_t i = 0; i < count; i++) {
        const struct timing_op *o = &ops[i];
        struct rdu_work w = {.flops = o->flops / n,
                             .hbm_bytes = (o->in_bytes + o->out_bytes + o->weight_bytes) / n};
        charge(chip, &w, RDU_LEVEL_UNFUSED, 1, c);
        charge_reduce(chip, o->reduce_bytes, p->train ? 2 : 1, c);
        if (!p->train)
            continue;
        /* Backward: a matmul has one kernel for each operand's gradient, which read the output's
         * gradient and the other operand; the rest read it and their input. */
        w.hbm_bytes = (o->in_bytes + o->out_bytes + o->weight_bytes) / n;
        if (!o->matmul)
            w.hbm_bytes += o->in_bytes / n;
        charge(chip, &w, RDU_LEVEL_UNFUSED, o->matmul ? 2 : 1, c);
    }
}

/* Operators [from, to) as one kernel. */
static struct rdu_work fuse(const struct rdu_chip *chip, const struct rdu_pass *p,
                            const struct timing_op *ops, size_t from, size_t to, double x_bytes)
{
    double n = chip->node_sockets, backward = p->train ? 3 : 1;
    struct rdu_work w = {.hbm_bytes = ops[from].in_bytes - ops[from].kv_read + ops[to - 1].out_bytes};
    if (from > 0)
        w.hbm_bytes += x_bytes; /* the residual comes round the cut */
    for (size_t i = from; i < to; i++) {
        const struct timing_op *o = &ops[i];
        struct rdu_work sum = rdu_time_collective(chip, RDU_ALL_REDUCE, o->reduce_bytes);
        w.flops += backward * o->fused_flops;
        w.hbm_bytes += o->weight_bytes + o->kv_read + o->kv_write;
        if (p->train)
            w.hbm_bytes += 2 * o->weight_bytes + 2 * o->saved_bytes;
        w.sram_bytes += backward * (o->in_bytes + o->out_bytes);
        w.p2p_bytes += (p->train ? 2 : 1) * sum.p2p_bytes;
        w.hops += (p->train ? 2 : 1) * sum.hops;
    }
    w.flops /= n;
    w.hbm_bytes /= n;
    w.sram_bytes /= n;
    return w;
}

static void fused_layers(const struct rdu_chip *chip, const struct rdu_shape *s,
                         const struct rdu_pass *p, const struct timing_op *ops, size_t count,
                         enum rdu_level level, struct rdu_clock *c)
{
    size_t cut[TIMING_OPS_MAX];
    size_t kernels = timing_cut(chip, p, ops, count, cut);
    for (size_t k = 0; k < kernels; k++) {
        struct rdu_work w = fuse(chip, p, ops, cut[k], k + 1 < kernels ? cut[k + 1] : count,
                                 p->tokens * s->width * TIMING_ACT_BYTES);
        charge(chip, &w, level, s->layers, c);
        /* The backward half is a second kernel of twice the work, counted above. */
        if (p->train && level != RDU_LEVEL_LOOPED)
            for (uint32_t i = 0; i < s->layers; i++)
                rdu_time_launch(chip, level, c);
    }
}

/* Embedding before and norm and head behind the layers. */
static void ends(const struct rdu_chip *chip, const struct rdu_shape *s, const struct rdu_pass *p,
                 enum rdu_level level, struct rdu_clock *c)
{
    double n = chip->node_sockets, d = s->width, back = p->train ? 3 : 1;
    double outs = p->train ? p->tokens : p->outs;
    double x = p->tokens * d * TIMING_ACT_BYTES, y = outs * d * TIMING_ACT_BYTES;
    struct rdu_work embed = {.hbm_bytes = 2 * x / n};
    struct rdu_work norm = {.flops = 5 * outs * d / n, .hbm_bytes = 2 * y / n};
    struct rdu_work head = {.flops = back * 2 * outs * d * s->vocab / n,
                            .hbm_bytes = back * (d * s->vocab * s->weight_bytes + y) / n};
    if (s->vocab == 0)
        return;
    charge(chip, &embed, level, 1, c);
    if (level == RDU_LEVEL_UNFUSED)
        charge(chip, &norm, level, 1, c);
    charge(chip, &head, level, 1, c);
}

void rdu_time_pass(const struct rdu_chip *chip, const struct rdu_shape *shape,
                   const struct rdu_pass *pass, enum rdu_level level, struct rdu_clock *ret)
{
    struct timing_op ops[TIMING_OPS_MAX];
    struct rdu_clock layer = {0};
    *ret = (struct rdu_clock){0};
    if (pass->tokens <= 0)
        return;
    if (shape->tower && pass->tokens > pass->seqs) { /* not when it decodes */
        struct rdu_pass see = rdu_pass_prefill(pass->seqs, shape->tower_tokens);
        see.pairs = see.square; /* an encoder has no mask */
        see.train = pass->train;
        rdu_time_pass(chip, shape->tower, &see, level, ret);
    }
    size_t count = timing_layer_ops(shape, pass, ops);
    if (level == RDU_LEVEL_UNFUSED) {
        unfused_layer(chip, pass, ops, count, &layer);
        rdu_clock_add(ret, &layer, shape->layers);
    } else {
        fused_layers(chip, shape, pass, ops, count, level, ret);
    }
    ends(chip, shape, pass, level, ret);
    if (level == RDU_LEVEL_LOOPED) /* embedding, loop over the layers and head are one schedule */
        rdu_time_launch(chip, level, ret);
}

/* ---- the same, summed up beforehand ---- */

/* Everything an operator moves and does is a constant and so much per token, pair and KV token; only how
 * a sum is reduced, and which resource is the slowest, is not, and is looked at every time. */

static const size_t plan_axis[4] = {offsetof(struct rdu_pass, tokens), offsetof(struct rdu_pass, pairs),
                                    offsetof(struct rdu_pass, square),
                                    offsetof(struct rdu_pass, kv_tokens)};

static struct rdu_work plan_point(const struct rdu_chip *chip, const struct rdu_shape *shape,
                                  const struct rdu_pass *p, double *ret_out, struct rdu_pass_plan *plan)
{
    struct timing_op ops[TIMING_OPS_MAX];
    size_t count = timing_layer_ops(shape, p, ops);
    *ret_out = plan->stay_bytes = plan->reduces = 0;
    for (size_t i = 0; i < count; i++) {
        *ret_out += ops[i].out_bytes;
        plan->stay_bytes += ops[i].weight_bytes;
        plan->reduces += ops[i].reduce_bytes > 0;
        ops[i].reduce_bytes = 0;
    }
    return fuse(chip, p, ops, 0, count, 0);
}

static struct rdu_work work_minus(struct rdu_work a, const struct rdu_work *b)
{
    a.flops -= b->flops;
    a.hbm_bytes -= b->hbm_bytes;
    a.sram_bytes -= b->sram_bytes;
    return a;
}

void rdu_pass_plan_init(struct rdu_pass_plan *plan, const struct rdu_chip *chip,
                        const struct rdu_shape *shape, enum rdu_level level)
{
    *plan = (struct rdu_pass_plan){.chip = chip, .shape = shape, .level = level};
    struct rdu_pass p = {0};
    plan->base = plan_point(chip, shape, &p, &plan->out_bytes[4], plan);
    for (size_t i = BASE_COUNT(plan_axis); i-- > 0;) { /* tokens last: they make the sums */
        p = (struct rdu_pass){0};
        *(double *)(void *)((char *)&p + plan_axis[i]) = 1;
        struct rdu_work at = plan_point(chip, shape, &p, &plan->out_bytes[i], plan);
        plan->per[i] = work_minus(at, &plan->base);
        plan->out_bytes[i] -= plan->out_bytes[4];
    }
}

static bool plan_fits(const struct rdu_pass_plan *plan, const struct rdu_pass *p)
{
    double v[4] = {p->tokens, p->pairs, p->square, p->kv_tokens}, out = plan->out_bytes[4];
    for (size_t i = 0; i < BASE_COUNT(v); i++)
        out += v[i] * plan->out_bytes[i];
    double stay = p->tokens > TILE_TOKENS ? plan->stay_bytes : 0;
    double used = (stay + 2 * out / BASE_MAX(p->tokens / TILE_TOKENS, 1)) / plan->chip->node_sockets;
    return used <= plan->chip->socket_sram_bytes * plan->chip->efficiency_pcu_share_fused;
}

void rdu_pass_plan_time(const struct rdu_pass_plan *plan, const struct rdu_pass *pass,
                        struct rdu_clock *ret)
{
    if (!plan_fits(plan, pass) || pass->train) {
        rdu_time_pass(plan->chip, plan->shape, pass, plan->level, ret);
        return;
    }
    *ret = (struct rdu_clock){0};
    if (pass->tokens <= 0)
        return;
    struct rdu_work w = plan->base;
    const double v[4] = {pass->tokens, pass->pairs, pass->square, pass->kv_tokens};
    for (size_t i = 0; i < BASE_COUNT(v); i++) {
        w.flops += v[i] * plan->per[i].flops;
        w.hbm_bytes += v[i] * plan->per[i].hbm_bytes;
        w.sram_bytes += v[i] * plan->per[i].sram_bytes;
    }
    struct rdu_work sum = rdu_time_collective(plan->chip, RDU_ALL_REDUCE,
                                              pass->tokens * plan->shape->width * TIMING_ACT_BYTES);
    w.p2p_bytes = plan->reduces * sum.p2p_bytes;
    w.hops = (uint32_t)plan->reduces * sum.hops;
    charge(plan->chip, &w, plan->level, plan->shape->layers, ret);
    ends(plan->chip, plan->shape, pass, plan->level, ret);
    if (plan->level == RDU_LEVEL_LOOPED)
        rdu_time_launch(plan->chip, plan->level, ret);
}

/* ---- FlashFFTConv as a Monarch graph ---- */

enum { COMPLEX_BYTES = 4, REAL_BYTES = 2 }; /* bf16 */

/* A convolution is an FFT, a product with the filter's and an FFT back, each FFT three multiplications
 * with small DFT matrices and what lies between them. `flops` per point. */
static size_t monarch_ops(const uint32_t factor[3], double points, struct timing_op ret[TIMING_OPS_MAX])
{
    size_t n = 0;
    double z = points * COMPLEX_BYTES, x = points * REAL_BYTES;
    ret[n++] = (struct timing_op){.name = "to_complex", .in_bytes = x, .out_bytes = z};
    for (int back = 0; back < 2; back++) {
        for (int i = 0; i < 3; i++) {
            ret[n++] = (struct timing_op){.name = "dft", .in_bytes = z, .out_bytes = z,
                                          .flops = 8.0 * factor[back ? 2 - i : i] * points};
            if (i == 2)
                continue;
            ret[n++] = (struct timing_op){.name = "twiddle", .in_bytes = z, .out_bytes = z,
                                          .flops = 6 * points};
            ret[n++] = (struct timing_op){.name = "transpose", .in_bytes = z, .out_bytes = z};
        }
        if (back == 0)
            ret[n++] = (struct timing_op){.name = "filter", .in_bytes = z, .out_bytes = z,
                                          .weight_bytes = z, .flops = 6 * points};
    }
    ret[n++] = (struct timing_op){.name = "to_real", .in_bytes = z, .out_bytes = x};
    return n;
}

void rdu_time_monarch(const struct rdu_chip *chip, const uint32_t factor[3], double channels,
                      enum rdu_level level, struct rdu_clock *ret)
{
    struct timing_op ops[TIMING_OPS_MAX];
    double points = channels * factor[0] * factor[1] * factor[2];
    size_t count = monarch_ops(factor, points, ops);
    struct rdu_work all = {.hbm_bytes = ops[0].in_bytes + ops[count - 1].out_bytes};
    struct rdu_chip one = *chip;
    one.node_sockets = 1;
    *ret = (struct rdu_clock){0};
    for (size_t i = 0; i < count; i++) {
        struct rdu_work w = {.flops = ops[i].flops,
                             .hbm_bytes = ops[i].in_bytes + ops[i].out_bytes + ops[i].weight_bytes};
        if (level == RDU_LEVEL_UNFUSED)
            charge(&one, &w, level, 1, ret);
        all.flops += ops[i].flops;
        all.hbm_bytes += ops[i].weight_bytes;
        all.sram_bytes += ops[i].in_bytes + ops[i].out_bytes;
    }
    if (level == RDU_LEVEL_UNFUSED)
        return;
    charge(&one, &all, level, 1, ret);
    if (level == RDU_LEVEL_LOOPED)
        rdu_time_launch(&one, level, ret);
}
