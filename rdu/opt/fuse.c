/* From nodes to launches. Every operator has a leaf of its own; fusion makes one launch of several
 * nodes where a leaf for the whole exists and Delite's rules allow it: same domain (horizontal:
 * matmuls over one x) or consumer at the shared index of its only producer (vertical: norm then
 * quantise, gate and up then activation, product then residual add), nothing else reads what
 * disappears, and at most one of them has an effect. A Loop no leaf stands for is interpreted. */
#include <stdlib.h>
#include <string.h>

#include "rdu/opt/opt.h"

struct fuse {
    const struct rdu_graph *g;
    uint32_t section;
    bool fused;
    struct opt_section *out;
    struct opt_saved *saved;
    struct buf *report;
    uint32_t
        *readers; /* [nodes] nodes of the section that read it, the section's result counts one */
    uint32_t *claimed; /* [nodes] cluster + 1 */
    struct err *e;
    enum err_code rc;
};

static const struct ir_key *key_of(const struct fuse *f, uint32_t id)
{
    return &f->g->nodes[id].key;
}

static bool in_section(const struct fuse *f, uint32_t id)
{
    const struct ir_key *key = key_of(f, id);
    return key->kind != IR_TABLE && key->kind != IR_INPUT && key->section == f->section;
}

static bool is_oper(const struct fuse *f, uint32_t id, enum ir_oper oper)
{
    return ir_loop_is(&f->g->nodes[id], oper);
}

static bool is_external(const struct fuse *f, uint32_t id, enum ir_external which)
{
    return key_of(f, id)->kind == IR_EXTERNAL && key_of(f, id)->which == (uint32_t)which;
}

static void count_readers(struct fuse *f)
{
    for (uint32_t i = 0; i < f->g->count; i++) {
        for (uint32_t k = 0; in_section(f, i) && k < key_of(f, i)->operands; k++)
            f->readers[key_of(f, i)->operand[k]]++;
    }
    f->readers[f->g->section[f->section].result]++;
}

/* ---- clusters -------------------------------------------------------------------------------- */

static struct opt_cluster *new_cluster(struct fuse *f, enum rdu_kernel kernel, uint32_t node)
{
    struct opt_section *s = f->out;
    if (s->count == s->cap) {
        s->cap = s->cap > 0 ? s->cap * 2 : 16;
        s->clusters = mem_grow(s->clusters, s->cap, sizeof(*s->clusters));
    }
    struct opt_cluster *c = &s->clusters[s->count++];
    memset(c, 0, sizeof(*c));
    c->l.kernel = kernel;
    for (int i = 0; i < 3; i++)
        c->l.in[i] = IR_NONE;
    for (int i = 0; i < 4; i++)
        c->l.out[i] = IR_NONE;
    c->first = c->l.node = node;
    c->after = c->residual = c->product = IR_NONE;
    return c;
}

static void claim(struct fuse *f, struct opt_cluster *c, uint32_t node)
{
    f->claimed[node] = (uint32_t)(c - f->out->clusters) + 1;
    c->first = BASE_MIN(c->first, node);
    c->l.nodes++;
}

static bool is_free(const struct fuse *f, uint32_t node)
{
    return f->claimed[node] == 0;
}

static uint64_t bytes_of(const struct fuse *f, uint32_t node)
{
    return opt_value_bytes(opt_node_value(f->g, node));
}

/* The gate: fused only if it moves fewer bytes or saves a launch (a barrier of all sockets). Our
 * leaves keep their vector form when fused, so there is no other side to weigh; the totals are
 * checked against the counted work of both plans by a test. */
static bool is_worth(struct fuse *f, const char *what, uint32_t node, uint64_t bytes,
                     uint32_t launches)
{
    if (bytes == 0 && launches == 0)
        return false;
    f->saved->bytes += bytes;
    f->saved->launches += launches;
    buf_printf(f->report, "  fuse %%%u: %s: %llu bytes per row and %u launch%s less\n", node, what,
               (unsigned long long)bytes, launches, launches == 1 ? "" : "es");
    return true;
}

/* ---- matmul ---------------------------------------------------------------------------------- */

/* A product as the rest of the graph sees it: the delta in layers, the matmul elsewhere. */
static bool is_product(const struct fuse *f, uint32_t id)
{
    if (is_external(f, id, IR_EXT_DELTA))
        return true;
    return is_external(f, id, IR_EXT_MATMUL) && f->section != RDU_SECTION_LAYER;
}

static uint32_t matmul_of(const struct fuse *f, uint32_t product)
{
    return is_external(f, product, IR_EXT_DELTA) ? key_of(f, product)->operand[0] : product;
}

static uint32_t x_of(const struct fuse *f, uint32_t product)
{
    return key_of(f, matmul_of(f, product))->operand[0];
}

/* The integers of the quantised x, IR_NONE in f32 programs. */
static uint32_t q8_of(const struct fuse *f, uint32_t product)
{
    const struct ir_key *key = key_of(f, matmul_of(f, product));
    return key->operands > 1 ? key->operand[1] : IR_NONE;
}

static void add_product(struct fuse *f, struct opt_cluster *c, uint32_t product)
{
    uint32_t i = c->l.slots++;
    c->l.slot[i] = key_of(f, product)->slot;
    c->l.in[0] = x_of(f, product);
    c->l.in[1] = q8_of(f, product);
    claim(f, c, product);
    if (matmul_of(f, product) != product)
        claim(f, c, matmul_of(f, product));
}

/* What a product reads of its x. */
static uint64_t input_bytes(const struct fuse *f, uint32_t product)
{
    return bytes_of(f, q8_of(f, product) != IR_NONE ? q8_of(f, product) : x_of(f, product));
}

/* act(gate, up) over two products of one x that nothing else reads. */
static void fuse_gate_up(struct fuse *f, uint32_t id)
{
    bool gelu = is_oper(f, id, IR_OPER_GELU_MUL);
    if (!gelu && !is_oper(f, id, IR_OPER_SILU_MUL))
        return;
    uint32_t gate = key_of(f, id)->operand[0], up = key_of(f, id)->operand[1];
    if (gate == up || !is_product(f, gate) || !is_product(f, up) || !is_free(f, gate) ||
        !is_free(f, up) || f->readers[gate] != 1 || f->readers[up] != 1 ||
        x_of(f, gate) != x_of(f, up) || q8_of(f, gate) != q8_of(f, up))
        return;
    /* x read once, gate and up neither stored nor loaded. */
    uint64_t bytes = input_bytes(f, gate) + 2 * bytes_of(f, gate) + 2 * bytes_of(f, up);
    if (!is_worth(f, "gate + up + activation", id, bytes, 2))
        return;
    struct opt_cluster *c = new_cluster(f, RDU_KERNEL_GATE_UP, id);
    add_product(f, c, gate);
    add_product(f, c, up);
    claim(f, c, id);
    c->l.act = gelu ? RDU_ACT_GELU : RDU_ACT_SILU;
    c->l.out[0] = id;
    c->l.out[2] = gate;
    c->l.out[3] = up;
}

/* a + product, the product read by nothing else: added where a lies. Whether a may be overwritten
 * is known once the order is (opt_buffers splits it again if not). */
static void fuse_residual(struct fuse *f, uint32_t id)
{
    if (!is_oper(f, id, IR_OPER_ADD))
        return;
    const uint32_t *operand = key_of(f, id)->operand;
    for (int i = 1; i >= 0; i--) {
        uint32_t product = operand[i], other = operand[1 - i];
        if (other == product || !is_product(f, product) || !is_free(f, product) ||
            f->readers[product] != 1 || x_of(f, product) == other)
            continue;
        if (!is_worth(f, "matmul + residual", id, 2 * bytes_of(f, product), 1))
            return;
        struct opt_cluster *c = new_cluster(f, RDU_KERNEL_MATMUL, id);
        add_product(f, c, product);
        claim(f, c, id);
        c->l.add = true;
        c->l.out[0] = id;
        c->residual = other;
        c->product = product;
        return;
    }
}

/* The product `id` and up to two more over the same x. */
static void fuse_products(struct fuse *f, uint32_t id)
{
    if (!is_product(f, id) || !is_free(f, id))
        return;
    struct opt_cluster *c = new_cluster(f, RDU_KERNEL_MATMUL, id);
    c->l.out[0] = id;
    add_product(f, c, id);
    for (uint32_t i = id + 1; f->fused && i < f->g->count && c->l.slots < 3; i++) {
        if (!in_section(f, i) || !is_product(f, i) || !is_free(f, i) || x_of(f, i) != x_of(f, id) ||
            q8_of(f, i) != q8_of(f, id) ||
            !is_worth(f, "one more matmul of the same x", i, input_bytes(f, i), 1))
            continue;
        c->l.out[c->l.slots] = i;
        add_product(f, c, i);
    }
}

/* ---- rope and append ------------------------------------------------------------------------- */

static void set_rope(struct fuse *f, struct opt_cluster *c, uint32_t rope)
{
    const struct ir_key *key = key_of(f, rope);
    const struct ir_table *tables = f->g->tables;
    c->l.heads = key->hint.heads;
    c->l.head_dim = key->hint.head_dim;
    c->l.rot = key->hint.rot;
    c->l.rope = (enum rdu_rope)key->hint.style;
    c->l.table_rows = key->hint.table_rows;
    c->l.cos_table = tables[key_of(f, key->operand[1])->which].data;
    c->l.sin_table = tables[key_of(f, key->operand[2])->which].data;
}

/* Rope over something computed here that nothing else reads: it may turn it where it lies. */
static bool turns_in_place(const struct fuse *f, uint32_t rope)
{
    uint32_t from = key_of(f, rope)->operand[0];
    return in_section(f, from) && f->readers[from] == 1;
}

static uint32_t attention_of(const struct fuse *f, uint32_t append)
{
    for (uint32_t i = append + 1; i < f->g->count; i++) {
        if (in_section(f, i) && is_external(f, i, IR_EXT_ATTENTION) &&
            key_of(f, i)->operand[1] == append)
            return i;
    }
    return IR_NONE;
}

static void fuse_append(struct fuse *f, uint32_t id)
{
    if (!is_external(f, id, IR_EXT_KV_APPEND) || attention_of(f, id) == IR_NONE)
        return;
    uint32_t q = key_of(f, attention_of(f, id))->operand[0], k = key_of(f, id)->operand[0];
    if (q == k || !is_oper(f, q, IR_OPER_ROPE) || !is_oper(f, k, IR_OPER_ROPE) ||
        f->readers[q] != 1 || f->readers[k] != 1 || !turns_in_place(f, q) || !turns_in_place(f, k))
        return;
    struct ir_hint a = key_of(f, q)->hint, b = key_of(f, k)->hint;
    a.heads = b.heads;
    if (memcmp(&a, &b, sizeof(a)) != 0 || key_of(f, q)->operand[1] != key_of(f, k)->operand[1] ||
        key_of(f, q)->operand[2] != key_of(f, k)->operand[2] ||
        !is_worth(f, "rope of q and k + KV append", id, bytes_of(f, k), 2))
        return;
    struct opt_cluster *c = new_cluster(f, RDU_KERNEL_ROPE_APPEND, id);
    set_rope(f, c, q);
    c->l.kv_heads = b.heads;
    c->l.in[0] = key_of(f, q)->operand[0];
    c->l.in[1] = key_of(f, k)->operand[0];
    c->l.in[2] = key_of(f, id)->operand[1];
    c->l.out[0] = q;
    c->l.out[1] = k;
    claim(f, c, q);
    claim(f, c, k);
    claim(f, c, id);
}

/* ---- one operator, one launch ---------------------------------------------------------------- */

static struct opt_cluster *single(struct fuse *f, enum rdu_kernel kernel, uint32_t id)
{
    const struct ir_key *key = key_of(f, id);
    struct opt_cluster *c = new_cluster(f, kernel, id);
    c->l.in[0] = key->operand[0];
    c->l.out[0] = id;
    c->l.factor = c->l.eps = key->hint.f;
    if (key->hint.slot != IR_NONE) {
        c->l.slot[0] = key->hint.slot;
        c->l.slots = 1;
    }
    claim(f, c, id);
    return c;
}

static void single_external(struct fuse *f, uint32_t id)
{
    const struct ir_key *key = key_of(f, id);
    if (key->which == IR_EXT_KV_APPEND) {
        struct opt_cluster *c = single(f, RDU_KERNEL_APPEND, id);
        c->l.in[0] = c->l.out[0] = IR_NONE;
        c->l.in[1] = key->operand[0];
        c->l.in[2] = key->operand[1];
        c->l.slots = 0;
        c->l.kv_heads = key->kv_heads;
        c->l.head_dim = key->head_dim;
    } else if (key->which == IR_EXT_ATTENTION) {
        struct opt_cluster *c = single(f, RDU_KERNEL_ATTENTION, id);
        c->l.slots = 0;
        c->after = key->operand[1];
        c->l.heads = key->heads;
        c->l.kv_heads = key->kv_heads;
        c->l.head_dim = key->head_dim;
        c->l.attention.heads = key->heads;
        c->l.attention.kv_heads = key->kv_heads;
        c->l.attention.head_dim = key->head_dim;
        c->l.attention.scale = key->scale;
        c->l.attention.softcap = key->softcap;
        c->l.attention.windowed = key->windowed != 0;
        c->l.attention.bidirectional = key_of(f, key->operand[2])->which == IR_INPUT_ENDS;
    } else if (key->which == IR_EXT_COPY) {
        struct opt_cluster *c = single(f, RDU_KERNEL_SCALE, id);
        c->l.factor = 1.0f;
        c->l.slots = 0;
    }
}

/* A Loop of its own: operands that need a buffer must fit the three a launch has. */
static void single_loop(struct fuse *f, uint32_t id)
{
    const struct ir_key *key = key_of(f, id);
    struct opt_cluster *c = new_cluster(f, RDU_KERNEL_LOOP, id);
    uint32_t buffers = 0;
    bool fits = key->shape.elem == IR_ELEM_F32 && ir_shape_width(&key->shape) > 0 &&
                (key->shape.dim[0] == RDU_DIM_TOKENS || key->shape.dim[0] == RDU_DIM_OUTS);
    for (uint32_t k = 0; k < key->operands; k++) {
        const struct ir_key *from = key_of(f, key->operand[k]);
        if (from->kind == IR_TABLE || (from->kind == IR_INPUT && from->which != IR_INPUT_X))
            continue;
        if (buffers < 3)
            c->l.in[buffers] = key->operand[k];
        fits &= ++buffers <= 3 && from->shape.elem == IR_ELEM_F32;
    }
    if (!fits && f->rc == ERR_OK)
        f->rc = err_set(
            f->e, ERR_UNSUPPORTED,
            "graph %s: loop %%%u has no leaf and does not fit a launch (at most 3 f32 inputs, "
            "[tokens or outs, constant width]): open the program with RDU_EXEC_INTERP",
            f->g->name, id);
    c->l.out[0] = id;
    claim(f, c, id);
    buf_printf(f->report, "  loop %%%u matches no leaf: interpreted\n", id);
}

static enum rdu_act act_of(enum ir_oper oper)
{
    if (oper == IR_OPER_GELU)
        return RDU_ACT_GELU_ERF;
    return oper == IR_OPER_GELU_MUL ? RDU_ACT_GELU : RDU_ACT_SILU;
}

static void single_oper(struct fuse *f, uint32_t id)
{
    static const struct {
        enum ir_oper oper;
        enum rdu_kernel kernel;
    } leaf[] = {
        {IR_OPER_EMBED, RDU_KERNEL_EMBED},
        {IR_OPER_NORM, RDU_KERNEL_NORM},
        {IR_OPER_ADD, RDU_KERNEL_ADD},
        {IR_OPER_ADD_BIAS, RDU_KERNEL_ADD_BIAS},
        {IR_OPER_SCALE, RDU_KERNEL_SCALE},
        {IR_OPER_SOFTCAP, RDU_KERNEL_SOFTCAP},
        {IR_OPER_SILU_MUL, RDU_KERNEL_ACT},
        {IR_OPER_GELU_MUL, RDU_KERNEL_ACT},
        {IR_OPER_ROPE, RDU_KERNEL_ROPE},
        {IR_OPER_TAKE_OUTS, RDU_KERNEL_TAKE_OUTS},
        {IR_OPER_CENTER, RDU_KERNEL_CENTER},
        {IR_OPER_GELU, RDU_KERNEL_ACT},
        {IR_OPER_MEAN_POOL, RDU_KERNEL_MEAN_POOL},
    };
    const struct ir_key *key = key_of(f, id);
    for (size_t i = 0; i < BASE_COUNT(leaf); i++) {
        if (!is_oper(f, id, leaf[i].oper))
            continue;
        struct opt_cluster *c = single(f, leaf[i].kernel, id);
        if (leaf[i].kernel == RDU_KERNEL_EMBED) {
            c->l.in[0] = IR_NONE;
            c->l.by_pos = key_of(f, key->operand[0])->which == IR_INPUT_POS;
        }
        if (key->operands == 2 &&
            (leaf[i].kernel == RDU_KERNEL_ADD || leaf[i].kernel == RDU_KERNEL_ACT))
            c->l.in[1] = key->operand[1];
        if (leaf[i].kernel == RDU_KERNEL_NORM)
            c->l.groups = key->shape.rank == 3 ? (uint32_t)key->shape.dim[1] : 1;
        if (leaf[i].kernel == RDU_KERNEL_ACT)
            c->l.act = act_of(leaf[i].oper);
        if (leaf[i].kernel == RDU_KERNEL_ROPE)
            set_rope(f, c, id);
        return;
    }
    single_loop(f, id);
}

/* ---- quantise -------------------------------------------------------------------------------- */

static bool is_quant(const struct fuse *f, uint32_t id)
{
    return is_oper(f, id, IR_OPER_QUANT_D) || is_oper(f, id, IR_OPER_QUANT_Q) ||
           is_oper(f, id, IR_OPER_QUANT_S);
}

/* Can the kernel that makes x write its int8 form as well? Attention works by (token, kv head): the
 * heads of one must be whole blocks. */
static bool quantises(const struct opt_cluster *c, uint32_t x)
{
    switch (c->l.kernel) {
    case RDU_KERNEL_NORM:
    case RDU_KERNEL_GATE_UP:
    case RDU_KERNEL_ACT:
        return c->l.out[0] == x;
    case RDU_KERNEL_ATTENTION:
        return c->l.out[0] == x && c->l.heads / c->l.kv_heads * c->l.head_dim % IR_RUN == 0;
    default:
        return false;
    }
}

/* One q8 value is three Loops (d, q, s): found from its integers. */
static void map_quant(struct fuse *f, uint32_t q)
{
    uint32_t x = key_of(f, q)->operand[0], d = key_of(f, q)->operand[1];
    struct opt_cluster *c = NULL;
    if (f->fused && in_section(f, x) && f->claimed[x] > 0 &&
        quantises(&f->out->clusters[f->claimed[x] - 1], x) &&
        is_worth(f, "quantise where x is made", q, bytes_of(f, x), 1))
        c = &f->out->clusters[f->claimed[x] - 1];
    if (c == NULL) {
        c = new_cluster(f, RDU_KERNEL_QUANTIZE, q);
        c->l.in[0] = x;
    }
    c->l.out[1] = q;
    uint32_t first = c->first;
    claim(f, c, q);
    if (is_free(f, d))
        claim(f, c, d);
    for (uint32_t i = q + 1; i < f->g->count; i++) {
        if (in_section(f, i) && is_oper(f, i, IR_OPER_QUANT_S) && key_of(f, i)->operand[0] == q)
            claim(f, c, i);
    }
    c->first = BASE_MIN(first, c->first);
}

/* ---- order ----------------------------------------------------------------------------------- */

static bool is_ready(const struct fuse *f, const struct opt_cluster *c, const bool *done)
{
    const uint32_t need[5] = {c->l.in[0], c->l.in[1], c->l.in[2], c->after, c->residual};
    for (size_t i = 0; i < BASE_COUNT(need); i++) {
        if (need[i] == IR_NONE || !in_section(f, need[i]))
            continue;
        if (f->claimed[need[i]] == 0 || !done[f->claimed[need[i]] - 1])
            return false;
    }
    return true;
}

/* Topological order; among those that are ready the one that was written first. */
static enum err_code order(struct fuse *f)
{
    struct opt_section *s = f->out;
    struct opt_cluster *sorted = mem_array(BASE_MAX(s->count, 1u), sizeof(*sorted));
    bool *done = mem_array(BASE_MAX(s->count, 1u), sizeof(*done));
    enum err_code rc = ERR_OK;
    for (uint32_t i = 0; i < s->count && rc == ERR_OK; i++) {
        uint32_t best = IR_NONE;
        for (uint32_t k = 0; k < s->count; k++) {
            if (!done[k] && is_ready(f, &s->clusters[k], done) &&
                (best == IR_NONE || s->clusters[k].first < s->clusters[best].first))
                best = k;
        }
        if (best == IR_NONE) {
            rc = err_set(f->e, ERR_INTERNAL, "graph %s: fused launches wait for each other",
                         f->g->name);
        } else {
            sorted[i] = s->clusters[best];
            done[best] = true;
        }
    }
    if (rc == ERR_OK && s->count > 0)
        memcpy(s->clusters, sorted, s->count * sizeof(*sorted));
    free(sorted);
    free(done);
    return rc;
}

static void map_nodes(struct fuse *f)
{
    uint32_t n = f->g->count;
    for (uint32_t i = 0; f->fused && i < n; i++) {
        if (in_section(f, i))
            fuse_gate_up(f, i);
    }
    for (uint32_t i = 0; f->fused && i < n; i++) {
        if (!in_section(f, i) || !is_free(f, i))
            continue;
        fuse_append(f, i);
        fuse_residual(f, i);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (!in_section(f, i) || !is_free(f, i) || is_quant(f, i))
            continue;
        if (is_product(f, i))
            fuse_products(f, i);
        else if (key_of(f, i)->kind == IR_LOOP)
            single_oper(f, i);
        else if (!is_external(f, i, IR_EXT_MATMUL))
            single_external(f, i);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (in_section(f, i) && is_free(f, i) && is_oper(f, i, IR_OPER_QUANT_Q))
            map_quant(f, i);
    }
}

enum err_code opt_fuse(const struct rdu_graph *g, uint32_t section, bool fused,
                       struct opt_section *ret, struct opt_saved *ret_saved, struct buf *report,
                       struct err *e)
{
    struct fuse f = {.g = g,
                     .section = section,
                     .fused = fused,
                     .out = ret,
                     .saved = ret_saved,
                     .report = report,
                     .e = e};
    memset(ret, 0, sizeof(*ret));
    memset(ret_saved, 0, sizeof(*ret_saved));
    f.readers = mem_array(BASE_MAX(g->count, 1u), sizeof(*f.readers));
    f.claimed = mem_array(BASE_MAX(g->count, 1u), sizeof(*f.claimed));
    count_readers(&f);
    map_nodes(&f);
    if (f.rc == ERR_OK)
        f.rc = order(&f);
    free(f.readers);
    free(f.claimed);
    return f.rc;
}
