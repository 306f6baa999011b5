/* How a step is divided over sockets, and what follows from it: the prediction that a run's own
 * counters are held against. Row-wise launches are left out: their inputs and outputs are whole on
 * every socket in small steps, and shared by token in large ones, where they follow values that
 * were gathered already. */
#include <string.h>

#include "rdu/opt/opt.h"

void opt_share(const struct rdu_launch *l, uint32_t rows, uint32_t sockets, uint32_t socket,
               uint32_t *ret_from, uint32_t *ret_to)
{
    uint32_t unit = l->kernel == RDU_KERNEL_GATE_UP ? IR_RUN : RDU_GROUP;
    uint64_t units = (rows + unit - 1) / unit;
    *ret_from = BASE_MIN((uint32_t)(units * socket / sockets) * unit, rows);
    *ret_to = BASE_MIN((uint32_t)(units * (socket + 1) / sockets) * unit, rows);
}

static void add_weight(const struct rdu_launch *l, const struct rdu_weight *w, uint32_t sockets,
                       struct opt_traffic *t)
{
    for (uint32_t s = 0; s < sockets; s++) {
        uint32_t from, to;
        opt_share(l, w->rows, sockets, s, &from, &to);
        if (from < to)
            t->weight_bytes[s] += rdu_pack_bytes(w->type, to - from, w->cols);
    }
}

static uint32_t width_of(const struct rdu_program *p, uint32_t buf)
{
    return buf == RDU_BUF_X ? p->width : buf == RDU_BUF_LOGITS ? p->vocab : p->bufs[buf].width;
}

static uint64_t rows_of(const struct rdu_program *p, const struct rdu_args *a, uint32_t buf)
{
    bool outs = buf == RDU_BUF_LOGITS || (buf != RDU_BUF_X && p->bufs[buf].per_out);
    return outs ? a->n_outs : a->n_tokens;
}

static void add_gather(const struct rdu_program *p, const struct rdu_args *a, uint32_t buf, bool q8,
                       struct opt_traffic *t)
{
    t->gather_bytes +=
        opt_value_bytes((struct opt_value){width_of(p, buf), q8}) * rows_of(p, a, buf);
}

static void add_launch(const struct rdu_program *p, const struct rdu_args *a,
                       const struct rdu_launch *l, const struct rdu_weight *weights,
                       uint32_t sockets, struct opt_traffic *t)
{
    bool gate = l->kernel == RDU_KERNEL_GATE_UP;
    bool product = l->kernel == RDU_KERNEL_MATMUL || l->kernel == RDU_KERNEL_HEAD;
    for (uint32_t i = 0; (gate || product) && i < l->slots; i++)
        add_weight(l, &weights[l->slot[i]], sockets, t);
    for (uint32_t i = 0; product && i < l->slots; i++)
        add_gather(p, a, l->out[i], false, t);
    if (gate || l->kernel == RDU_KERNEL_ATTENTION)
        add_gather(p, a, l->out[0], l->out[1] != RDU_BUF_NONE, t);
}

void opt_traffic_of(const struct rdu_program *p, const struct rdu_args *args, uint32_t sockets,
                    struct opt_traffic *ret)
{
    memset(ret, 0, sizeof(*ret));
    for (uint32_t s = 0; s < RDU_SECTIONS; s++) {
        uint32_t times = s == RDU_SECTION_LAYER ? args->n_layers : 1;
        for (uint32_t k = 0; k < times; k++) {
            const struct rdu_weight *weights = args->globals;
            if (s == RDU_SECTION_LAYER)
                weights = args->layers + (size_t)k * p->layer_slots.count;
            for (uint32_t i = 0; i < p->section[s].count; i++)
                add_launch(p, args, &p->section[s].launches[i], weights, sockets, ret);
        }
    }
    if (sockets == 1)
        ret->gather_bytes = 0; /* there is nobody else */
}
