/* Running a lowered loop: rows of the outer domain one by one, the last dimension in blocks of
 * lanes. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rdu/ir/interp.h"
#include "rdu/kernels/half.h"

struct vm {
    const struct ir_exec_loop *l;
    const struct ir_env *e;
    const struct ir_ops *ops;
    int32_t *regs;
    uint32_t n; /* lanes of the current block */
};

static struct ir_ops ops_best;

static void pick_ops(void)
{
    ir_ops_base(&ops_best);
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        ir_ops_avx2(&ops_best);
#endif
}

const struct ir_ops *ir_ops(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, pick_ops);
    return &ops_best;
}

uint32_t ir_env_dim(const struct ir_env *e, int32_t dim)
{
    switch (dim) {
    case RDU_DIM_TOKENS:
        return e->n_tokens;
    case RDU_DIM_OUTS:
        return e->args->n_outs;
    case RDU_DIM_CTX:
        return e->ctx_blocks * RDU_KV_BLOCK;
    case IR_DIM_CTX_BLOCKS:
        return e->ctx_blocks;
    case IR_DIM_RANK:
        return e->delta ? e->delta->rank : 0;
    default:
        return dim > 0 ? (uint32_t)dim : 0;
    }
}

/* Value of argument k in lane i. */
static int32_t lane_of(const struct vm *m, const struct ir_step *s, uint32_t k, uint32_t i)
{
    return m->regs[s->arg[k].at + (s->arg[k].lane ? i : 0)];
}

static uint32_t lanes_of(const struct vm *m, const struct ir_step *s)
{
    return s->dst.lane ? m->n : 1;
}

/* ---- loads ----------------------------------------------------------------------------------- */

/* Element offset of lane i. */
static size_t offset_of(const struct vm *m, const struct ir_step *s, const struct ir_tensor *t,
                        uint32_t i)
{
    size_t at = (uint32_t)lane_of(m, s, 0, i);
    if (s->args == 1)
        return at;
    at = at * t->row_stride;
    if (s->args == 2)
        return at + (uint32_t)lane_of(m, s, 1, i);
    return at + (size_t)(uint32_t)lane_of(m, s, 1, i) * t->dim2 + (uint32_t)lane_of(m, s, 2, i);
}

/* Do the lanes follow each other in memory? All indices but the last uniform, the last rising by 1.
 */
static bool is_contiguous(const struct ir_step *s)
{
    for (uint32_t k = 0; k + 1 < s->args; k++) {
        if (s->arg[k].lane)
            return false;
    }
    return s->arg[s->args - 1].stride == 1;
}

static void load_contiguous(struct vm *m, const struct ir_step *s, const struct ir_tensor *t)
{
    size_t at = offset_of(m, s, t, 0);
    if (t->elem == IR_ELEM_I8)
        m->ops->widen(m->regs + s->dst.at, (const int8_t *)t->data + at, m->n);
    else
        memcpy(m->regs + s->dst.at, (const int32_t *)t->data + at, m->n * sizeof(int32_t));
}

static void load(struct vm *m, const struct ir_step *s)
{
    const struct ir_tensor *t = m->e->operand[s->imm];
    if (s->dst.lane && is_contiguous(s)) {
        load_contiguous(m, s, t);
        return;
    }
    uint32_t n = lanes_of(m, s);
    int32_t *d = m->regs + s->dst.at;
    for (uint32_t i = 0; i < n; i++) {
        size_t at = offset_of(m, s, t, i);
        if (t->elem == IR_ELEM_I8)
            d[i] = ((const int8_t *)t->data)[at];
        else
            memcpy(&d[i], (const int32_t *)t->data + at, sizeof(*d));
    }
}

static void load_weight(struct vm *m, const struct ir_step *s)
{
    struct rdu_weight w = ir_env_weight(m->e, s->imm);
    int32_t *d = m->regs + s->dst.at;
    if (s->dst.lane && s->arg[0].stride == 1 && !s->arg[1].lane) {
        const void *run = ir_tiles_rows(m->e->tiles, &w, s->code, (uint32_t)lane_of(m, s, 0, 0),
                                        m->n, (uint32_t)lane_of(m, s, 1, 0));
        memcpy(d, run, m->n * sizeof(*d));
        return;
    }
    uint32_t n = lanes_of(m, s);
    for (uint32_t i = 0; i < n; i++)
        d[i] = ir_tiles_one(m->e->tiles, &w, s->code, (uint32_t)lane_of(m, s, 0, i),
                            (uint32_t)lane_of(m, s, 1, i));
}

static void load_vector(struct vm *m, const struct ir_step *s)
{
    const float *data = ir_env_weight(m->e, s->imm).data;
    uint32_t n = lanes_of(m, s);
    for (uint32_t i = 0; i < n; i++)
        memcpy(m->regs + s->dst.at + i, data + (uint32_t)lane_of(m, s, 0, i), sizeof(float));
}

/* ---- KV -------------------------------------------------------------------------------------- */

static size_t kv_elem_bytes(const struct ir_env *e)
{
    return e->args->kv_type == RDU_KV_F16 ? 2 : 4;
}

static char *kv_block(const struct ir_env *e, uint32_t token, uint32_t head, uint32_t pos)
{
    const struct rdu_args *a = e->args;
    uint32_t per_page = a->kv_page_tokens / RDU_KV_BLOCK;
    char *page = a->kv_pages[a->seq[e->token_from + token]][pos / a->kv_page_tokens];
    size_t block =
        ((size_t)e->layer * e->kv_heads + head) * per_page + pos % a->kv_page_tokens / RDU_KV_BLOCK;
    return page + block * 2 * RDU_KV_BLOCK * e->head_dim * kv_elem_bytes(e);
}

/* Element number of (pos, d) in a block: K is [d][slot], V follows as [slot][d]. */
static size_t kv_at(const struct ir_env *e, bool is_k, uint32_t pos, uint32_t d)
{
    uint32_t slot = pos % RDU_KV_BLOCK;
    if (is_k)
        return (size_t)d * RDU_KV_BLOCK + slot;
    return (size_t)RDU_KV_BLOCK * e->head_dim + (size_t)slot * e->head_dim + d;
}

static float kv_read(const struct ir_env *e, const char *block, size_t at)
{
    if (e->args->kv_type == RDU_KV_F16) {
        uint16_t h;
        memcpy(&h, block + at * sizeof(h), sizeof(h));
        return rdu_half_load(h);
    }
    float f;
    memcpy(&f, block + at * sizeof(f), sizeof(f));
    return f;
}

static void kv_write(const struct ir_env *e, char *block, size_t at, float v)
{
    if (e->args->kv_type == RDU_KV_F16) {
        uint16_t h = rdu_half_store(v);
        memcpy(block + at * sizeof(h), &h, sizeof(h));
    } else {
        memcpy(block + at * sizeof(v), &v, sizeof(v));
    }
}

/* One sequence, head and d over neighbouring positions, or one position over neighbouring d: runs
 * of lanes inside one block are contiguous in the page. Returns the lanes done from i on, 0 if not
 * so. */
static uint32_t kv_run(struct vm *m, const struct ir_step *s, uint32_t i)
{
    bool is_k = s->code == IR_KV_K;
    const struct ir_reg *along = &s->arg[is_k ? 2 : 3], *across = &s->arg[is_k ? 3 : 2];
    if (s->arg[0].lane || s->arg[1].lane || across->lane || along->stride != 1)
        return 0;
    uint32_t pos = (uint32_t)lane_of(m, s, 2, i), d = (uint32_t)lane_of(m, s, 3, i);
    uint32_t n = is_k ? BASE_MIN(RDU_KV_BLOCK - pos % RDU_KV_BLOCK, m->n - i) : m->n - i, run = 0;
    while (run < n && lane_of(m, s, 4, i + run))
        run++;
    if (run == 0)
        return 0;
    const char *block =
        kv_block(m->e, (uint32_t)lane_of(m, s, 0, 0), (uint32_t)lane_of(m, s, 1, 0), pos);
    const char *from = block + kv_at(m->e, is_k, pos, d) * kv_elem_bytes(m->e);
    if (m->e->args->kv_type == RDU_KV_F16)
        m->ops->halves((float *)(m->regs + s->dst.at + i), (const uint16_t *)(const void *)from,
                       run);
    else
        memcpy(m->regs + s->dst.at + i, from, run * sizeof(float));
    return run;
}

static void kv_load(struct vm *m, const struct ir_step *s)
{
    uint32_t n = lanes_of(m, s);
    for (uint32_t i = 0; i < n;) {
        uint32_t run = s->dst.lane ? kv_run(m, s, i) : 0;
        if (run > 0) {
            i += run;
            continue;
        }
        float v = 0.0f;
        if (lane_of(m, s, 4, i)) {
            uint32_t pos = (uint32_t)lane_of(m, s, 2, i);
            const char *block =
                kv_block(m->e, (uint32_t)lane_of(m, s, 0, i), (uint32_t)lane_of(m, s, 1, i), pos);
            v = kv_read(m->e, block,
                        kv_at(m->e, s->code == IR_KV_K, pos, (uint32_t)lane_of(m, s, 3, i)));
        }
        memcpy(m->regs + s->dst.at + i, &v, sizeof(v));
        i++;
    }
}

static void kv_put(struct vm *m, const struct ir_step *s)
{
    for (uint32_t i = 0; i < m->n; i++) {
        uint32_t pos = (uint32_t)lane_of(m, s, 2, i);
        char *block =
            kv_block(m->e, (uint32_t)lane_of(m, s, 0, i), (uint32_t)lane_of(m, s, 1, i), pos);
        float v;
        int32_t bits = lane_of(m, s, 4, i);
        memcpy(&v, &bits, sizeof(v));
        kv_write(m->e, block,
                 kv_at(m->e, s->code == IR_KV_PUT_K, pos, (uint32_t)lane_of(m, s, 3, i)), v);
    }
}

/* ---- reduces --------------------------------------------------------------------------------- */

static void run_steps(struct vm *m, uint32_t from, uint32_t to);

static void move(const struct vm *m, struct ir_reg dst, struct ir_reg src)
{
    if (dst.at == src.at)
        return;
    if (dst.lane && !src.lane)
        m->ops->fill(m->regs + dst.at, m->regs + src.at, m->n);
    else
        memcpy(m->regs + dst.at, m->regs + src.at, (dst.lane ? m->n : 1) * sizeof(int32_t));
}

static void run_seq(struct vm *m, const struct ir_step *s, uint32_t body, uint32_t count)
{
    /* Values that swap places need a copy on the side: all are read before one is written. */
    int32_t side[IR_CARRIED][IR_LANES];
    for (uint32_t i = 0; i < count; i++) {
        m->regs[s->index] = (int32_t)i;
        run_steps(m, body, s->end);
        for (uint32_t k = 0; s->carried > 1 && k < s->carried; k++) {
            if (!s->in_place[k])
                memcpy(side[k], m->regs + s->yield[k].at,
                       (s->yield[k].lane ? m->n : 1) * sizeof(int32_t));
        }
        for (uint32_t k = 0; k < s->carried; k++) {
            if (s->in_place[k])
                continue;
            if (s->carried == 1)
                move(m, s->carry[k], s->yield[k]);
            else if (s->carry[k].lane && !s->yield[k].lane)
                m->ops->fill(m->regs + s->carry[k].at, side[k], m->n);
            else
                memcpy(m->regs + s->carry[k].at, side[k],
                       (s->carry[k].lane ? m->n : 1) * sizeof(int32_t));
        }
    }
}

/* Rule 1: element i goes to partial sum i % 16, then the tree. */
static void run_sum16(struct vm *m, const struct ir_step *s, uint32_t body, uint32_t count)
{
    int32_t sum[16][IR_LANES];
    struct ir_reg carry = s->carry[0];
    uint32_t n = carry.lane ? m->n : 1;
    memset(sum, 0, sizeof(sum));
    for (uint32_t i = 0; i < count; i++) {
        m->regs[s->index] = (int32_t)i;
        memcpy(m->regs + carry.at, sum[i % 16], n * sizeof(int32_t));
        run_steps(m, body, s->end);
        if (carry.lane && !s->yield[0].lane)
            m->ops->fill(sum[i % 16], m->regs + s->yield[0].at, n);
        else
            memcpy(sum[i % 16], m->regs + s->yield[0].at, n * sizeof(int32_t));
    }
    ir_ops_fn *add = m->ops->fn[IR_ADD][IR_TYPE_F32][0];
    for (uint32_t half = 8; half > 0; half /= 2) {
        for (uint32_t j = 0; j < half; j++)
            add(sum[j], sum[j], sum[j + half], NULL, n);
    }
    memcpy(m->regs + carry.at, sum[0], n * sizeof(int32_t));
}

static void run_max(struct vm *m, const struct ir_step *s, uint32_t body, uint32_t count)
{
    struct ir_reg carry = s->carry[0], yield = s->yield[0];
    uint32_t variant = carry.lane && !yield.lane ? 2 : 0;
    ir_ops_fn *max = m->ops->fn[IR_MAX][s->type][variant];
    for (uint32_t i = 0; i < count; i++) {
        m->regs[s->index] = (int32_t)i;
        run_steps(m, body, s->end);
        max(m->regs + carry.at, m->regs + carry.at, m->regs + yield.at, NULL,
            carry.lane ? m->n : 1);
    }
}

static void run_reduce(struct vm *m, const struct ir_step *s, uint32_t body)
{
    uint32_t count = ir_env_dim(m->e, s->imm);
    if (s->arg[4].at != IR_NONE)
        count = (uint32_t)BASE_MAX(m->regs[s->arg[4].at], 0);
    for (uint32_t k = 0; k < s->carried; k++)
        move(m, s->carry[k], s->arg[k]);
    if (s->reduce == IR_REDUCE_SUM16)
        run_sum16(m, s, body, count);
    else if (s->reduce == IR_REDUCE_MAX)
        run_max(m, s, body, count);
    else
        run_seq(m, s, body, count);
}

/* ---- steps ----------------------------------------------------------------------------------- */

static void clamp(struct vm *m, const struct ir_step *s)
{
    int32_t top = (int32_t)BASE_MAX(ir_env_dim(m->e, s->imm), 1u) - 1;
    uint32_t n = lanes_of(m, s);
    for (uint32_t i = 0; i < n; i++) {
        int32_t v = lane_of(m, s, 0, i);
        m->regs[s->dst.at + i] = v < 0 ? 0 : BASE_MIN(v, top);
    }
}

static void argument(struct vm *m, const struct ir_step *s)
{
    const struct rdu_args *a = m->e->args;
    if (s->code == IR_WINDOW)
        m->regs[s->dst.at] = a->window ? (int32_t)BASE_MIN(a->window[m->e->layer], INT32_MAX) : 0;
    else
        memcpy(m->regs + s->dst.at, &m->e->delta->scale, sizeof(float));
}

static void run_step(struct vm *m, const struct ir_step *s)
{
    switch (s->kind) {
    case STEP_OP:
        s->fn(m->regs + s->dst.at, m->regs + s->arg[0].at,
              m->regs + (s->args > 1 ? s->arg[1].at : 0),
              m->regs + (s->args > 2 ? s->arg[2].at : 0), lanes_of(m, s));
        break;
    case STEP_CLAMP:
        clamp(m, s);
        break;
    case STEP_DIM:
        m->regs[s->dst.at] = (int32_t)ir_env_dim(m->e, s->imm);
        break;
    case STEP_ARG:
        argument(m, s);
        break;
    case STEP_LOAD:
        load(m, s);
        break;
    case STEP_WEIGHT:
        load_weight(m, s);
        break;
    case STEP_VECTOR:
        load_vector(m, s);
        break;
    case STEP_KV:
        kv_load(m, s);
        break;
    case STEP_KV_PUT:
        kv_put(m, s);
        break;
    case STEP_REDUCE:
        break;
    }
}

static void run_steps(struct vm *m, uint32_t from, uint32_t to)
{
    for (uint32_t at = from; at < to;) {
        const struct ir_step *s = &m->l->steps[at];
        if (s->kind == STEP_REDUCE) {
            run_reduce(m, s, at + 1);
            at = s->end;
        } else {
            run_step(m, s);
            at++;
        }
    }
}

/* ---- the domain ------------------------------------------------------------------------------ */

static void set_index(struct vm *m, uint32_t dim, uint32_t value)
{
    if (m->l->index[dim] != IR_NONE)
        m->regs[m->l->index[dim]] = (int32_t)value;
}

static void set_lanes(struct vm *m, uint32_t dim, uint32_t from, uint32_t n)
{
    m->n = n;
    if (m->l->index[dim] == IR_NONE)
        return;
    for (uint32_t i = 0; i < n; i++)
        m->regs[m->l->index[dim] + i] = (int32_t)(from + i);
}

/* Lanes from column `col` (flattened) of row `row` to the output. */
static void store(const struct vm *m, const struct ir_tensor *out, uint32_t row, size_t col)
{
    struct ir_reg r = m->l->result;
    if (out == NULL || r.at == IR_NONE)
        return;
    int32_t all[IR_LANES];
    const int32_t *from = m->regs + r.at;
    if (!r.lane) {
        m->ops->fill(all, from, m->n);
        from = all;
    }
    size_t at = row * out->row_stride + col;
    if (out->elem == IR_ELEM_I8)
        m->ops->narrow((int8_t *)out->data + at, from, m->n);
    else
        memcpy((int32_t *)out->data + at, from, m->n * sizeof(int32_t));
}

/* Where a loop's position in its outer domain is; sizes of the three dimensions. */
struct domain {
    uint32_t size[IR_DIMS], rank;
};

static void run_block(struct vm *m, const struct domain *d, uint32_t row, uint32_t mid,
                      uint32_t from, const struct ir_tensor *out)
{
    uint32_t last = d->rank - 1, size = d->size[last];
    set_lanes(m, last, from, BASE_MIN(size - from, (uint32_t)IR_LANES));
    run_steps(m, m->l->prologue, m->l->steps_count);
    if (d->rank == 1)
        store(m, out, 0, from);
    else
        store(m, out, row, d->rank == 2 ? from : (size_t)mid * size + from);
}

static void run_row(struct vm *m, const struct domain *d, uint32_t row, uint32_t mid,
                    const struct ir_tensor *out)
{
    if (d->rank > 1)
        set_index(m, 0, row);
    if (d->rank > 2)
        set_index(m, 1, mid);
    run_steps(m, 0, m->l->prologue);
    for (uint32_t from = 0; from < d->size[d->rank - 1]; from += IR_LANES)
        run_block(m, d, row, mid, from, out);
}

/* Weight rows in the lanes: all tokens for one block of rows, so that decoded weights are used
 * again. */
static void run_by_rows(struct vm *m, const struct domain *d, const struct ir_tensor *out)
{
    for (uint32_t from = 0; from < d->size[1]; from += IR_LANES) {
        for (uint32_t row = 0; row < d->size[0]; row++) {
            set_index(m, 0, row);
            run_steps(m, 0, m->l->prologue);
            run_block(m, d, row, 0, from, out);
        }
    }
}

void ir_run_loop(const struct ir_exec_loop *l, const struct ir_env *e, const struct ir_tensor *out)
{
    struct vm m = {.l = l, .e = e, .ops = ir_ops()};
    struct domain d = {.size = {1, 1, 1}, .rank = l->shape.rank};
    for (uint32_t i = 0; i < d.rank; i++)
        d.size[i] = ir_env_dim(e, l->shape.dim[i]);
    m.regs = mem_array(l->regs + IR_LANES, sizeof(*m.regs));
    for (uint32_t i = 0; i < l->consts_count; i++)
        m.regs[l->consts[i].at] = l->consts[i].bits;
    if (l->by_weight_rows) {
        run_by_rows(&m, &d, out);
    } else {
        uint32_t rows = d.rank > 1 ? d.size[0] : 1, mids = d.rank > 2 ? d.size[1] : 1;
        for (uint32_t row = 0; row < rows; row++) {
            for (uint32_t mid = 0; mid < mids; mid++)
                run_row(&m, &d, row, mid, out);
        }
    }
    free(m.regs);
}
