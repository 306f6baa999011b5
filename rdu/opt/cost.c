/* The work of a launch from the shapes of what it touches: for the fusion gate, explain and the
 * timing model. Bytes are counted as a kernel moves them: a value that is read in int8 form is not
 * read in f32 as well (adapters and float weights are the exception and not counted), values inside
 * a fused cluster stay in cache. */
#include "rdu/opt/opt.h"

uint64_t opt_value_bytes(struct opt_value v)
{
    if (v.q8)
        return v.width + (uint64_t)2 * sizeof(float) * ((v.width + IR_RUN - 1) / IR_RUN);
    return (uint64_t)v.width * sizeof(float);
}

struct opt_value opt_node_value(const struct rdu_graph *g, uint32_t node)
{
    struct opt_value v = {0, false};
    if (node != IR_NONE) {
        v.width = ir_shape_width(&g->nodes[node].key.shape);
        v.q8 = g->nodes[node].key.shape.elem == IR_ELEM_I8;
    }
    return v;
}

static void add_matmul(struct opt_work *w, const struct rdu_launch *l, const struct opt_value *in,
                       const struct opt_value *out)
{
    bool gate = l->kernel == RDU_KERNEL_GATE_UP;
    w->act_bytes += opt_value_bytes(in[1].width > 0 ? in[1] : in[0]);
    for (uint32_t i = 0; i < l->slots; i++) {
        uint64_t rows = out[gate ? 2 + i : i].width;
        w->weight_elems += rows * in[0].width;
        w->flops += 2 * rows * in[0].width;
        w->act_bytes += gate ? 0 : opt_value_bytes(out[i]) * (l->add ? 2 : 1);
    }
    if (gate)
        w->act_bytes += opt_value_bytes(out[0]) + opt_value_bytes(out[1]);
    w->flops += l->add ? out[0].width : 0;
}

static void add_attention(struct opt_work *w, const struct rdu_launch *l)
{
    const struct rdu_attention_options *o = &l->attention;
    w->flops_ctx += (uint64_t)4 * o->heads * o->head_dim;
    w->kv_elems_ctx += (uint64_t)2 * o->kv_heads * o->head_dim;
}

/* Operations per element of row-wise kernels; exp and tanh count 1 as divisions do. */
static uint64_t pointwise_flops(const struct rdu_launch *l)
{
    switch (l->kernel) {
    case RDU_KERNEL_NORM:
        return 4;
    case RDU_KERNEL_ACT:
    case RDU_KERNEL_GATE_UP:
        return l->act == RDU_ACT_GELU_ERF ? 20 : l->act == RDU_ACT_GELU ? 11 : 5;
    case RDU_KERNEL_ROPE:
    case RDU_KERNEL_ROPE_APPEND:
    case RDU_KERNEL_SOFTCAP:
        return 3;
    case RDU_KERNEL_ADD:
    case RDU_KERNEL_ADD_BIAS:
    case RDU_KERNEL_SCALE:
    case RDU_KERNEL_MEAN_POOL: /* per row that it sums; counted as one */
        return 1;
    case RDU_KERNEL_CENTER:
        return 2;
    default:
        return 0;
    }
}

struct opt_work opt_work_of(const struct rdu_launch *l, const struct opt_value in[3],
                            const struct opt_value out[4])
{
    struct opt_work w = {0};
    bool product = l->kernel == RDU_KERNEL_MATMUL || l->kernel == RDU_KERNEL_HEAD ||
                   l->kernel == RDU_KERNEL_GATE_UP;
    bool append = l->kernel == RDU_KERNEL_APPEND || l->kernel == RDU_KERNEL_ROPE_APPEND;
    if (product) {
        add_matmul(&w, l, in, out);
    } else {
        for (int i = 0; i < 3; i++)
            w.act_bytes += opt_value_bytes(in[i]);
        for (int i = 0; i < 4; i++)
            w.act_bytes += opt_value_bytes(out[i]);
    }
    w.flops += pointwise_flops(l) * out[0].width;
    if (l->kernel == RDU_KERNEL_ROPE_APPEND)
        w.flops += pointwise_flops(l) * out[1].width;
    w.kv_elems += append ? (uint64_t)2 * in[1].width : 0;
    if (l->kernel == RDU_KERNEL_ATTENTION)
        add_attention(&w, l);
    if (l->kernel == RDU_KERNEL_NORM || l->kernel == RDU_KERNEL_ADD_BIAS)
        w.weight_elems += out[0].width / (l->groups > 0 ? l->groups : 1);
    return w;
}

static struct opt_value buf_value(const struct rdu_program *p, uint32_t id)
{
    struct opt_value v = {0, false};
    if (id == RDU_BUF_X)
        v.width = p->width;
    else if (id == RDU_BUF_LOGITS)
        v.width = p->vocab;
    else if (id < p->bufs_count) {
        v.width = p->bufs[id].width;
        v.q8 = p->bufs[id].kind == RDU_BUF_Q8;
    }
    return v;
}

struct opt_work opt_launch_work(const struct rdu_program *p, const struct rdu_launch *l)
{
    struct opt_value in[3], out[4];
    for (int i = 0; i < 3; i++)
        in[i] = buf_value(p, l->in[i]);
    for (int i = 0; i < 4; i++)
        out[i] = buf_value(p, l->out[i]);
    /* In place: planned launches name what they change only as an input. */
    if (l->kernel == RDU_KERNEL_ROPE || l->kernel == RDU_KERNEL_ROPE_APPEND)
        out[0] = in[0];
    if (l->kernel == RDU_KERNEL_ROPE_APPEND)
        out[1] = in[1];
    return opt_work_of(l, in, out);
}

struct opt_work opt_cluster_work(const struct rdu_graph *g, const struct opt_cluster *c)
{
    struct opt_value in[3], out[4];
    for (int i = 0; i < 3; i++)
        in[i] = opt_node_value(g, c->l.in[i]);
    for (int i = 0; i < 4; i++)
        out[i] = opt_node_value(g, c->l.out[i]);
    return opt_work_of(&c->l, in, out);
}
