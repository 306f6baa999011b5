/* Node time of a step: what the modelled chip would have taken for the same tokens, contexts and
 * copies. Pure arithmetic on shapes (rdu/timing); nothing here is measured, nothing of it drives a
 * decision. */
#include "experts/serve.h"

/* Bytes of the matrices as they are stored, per weight of the shape. */
static double weight_bytes(const struct base *b, const struct rdu_shape *s)
{
    uint32_t per_layer = rdu_program_slots(b->program, RDU_SECTION_LAYER);
    uint32_t globals = rdu_program_slots(b->program, RDU_SECTION_HEAD);
    double bytes = 0;
    for (uint32_t i = 0; i < per_layer * s->layers + globals; i++) {
        const struct rdu_weight *w = i < globals ? &b->globals[i] : &b->layers[i - globals];
        const struct rdu_type_info *t = rdu_type_info(w->type);
        bytes += (double)w->rows * w->cols * t->block_bytes / t->block_elems;
    }
    return bytes / rdu_shape_weights(s);
}

void node_time_base(struct base *b, const struct rdu_chip *chip, enum rdu_exec exec)
{
    const struct model_shape *m = &b->set->shape;
    struct rdu_shape *s = &b->node_shape;
    *s = (struct rdu_shape){.name = model_arch_name(m->arch),
                            .layers = m->layers,
                            .width = m->width,
                            .heads = m->heads,
                            .kv_heads = m->kv_heads,
                            .head_dim = m->head_dim,
                            .ffn = m->ffn,
                            .vocab = m->vocab,
                            .gated = true,
                            .rotary = true,
                            .tied = m->tied_head,
                            .density = 1,
                            .sparse_share = 1,
                            .weight_bytes = 1};
    s->weight_bytes = weight_bytes(b, s);
    b->node_unfused = exec == RDU_EXEC_INTERP || exec == RDU_EXEC_UNFUSED;
    rdu_pass_plan_init(&b->node_plan, chip, s, RDU_LEVEL_LOOPED);
}

void node_time_item(struct rdu_pass *p, uint32_t tokens, size_t before, uint32_t outs)
{
    double n = tokens, c = (double)before;
    struct rdu_pass one = {.seqs = 1,
                           .tokens = n,
                           .outs = outs,
                           .pairs = n * c + n * (n + 1) / 2,
                           .square = n * (c + n),
                           .kv_tokens = c + n};
    rdu_pass_add(p, &one);
}

void node_time_step(const struct base *b, const struct rdu_pass *p, uint64_t load_bytes,
                    struct step_stats *ret)
{
    struct rdu_clock clock = {0};
    if (b->node_plan.chip == NULL)
        return;
    if (b->node_unfused)
        rdu_time_pass(b->node_plan.chip, &b->node_shape, p, RDU_LEVEL_UNFUSED, &clock);
    else
        rdu_pass_plan_time(&b->node_plan, p, &clock);
    ret->node_run_ns = (uint64_t)(rdu_clock_seconds(&clock) * 1e9);
    if (load_bytes > 0)
        ret->node_load_ns =
            (uint64_t)(rdu_time_switch_s(b->node_plan.chip, (double)load_bytes) * 1e9);
    ret->node_ns = ret->node_run_ns + ret->node_load_ns;
}
