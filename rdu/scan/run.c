/* Running loops over a table: blocks of rows through the steps of a loop, with the interpreter's
 * own arithmetic, then into the elems. Values are read where they lie: an address and how far it
 * moves per row, which is 0 for registers and what is the same for all rows. */
#include <stdlib.h>
#include <string.h>

#include "rdu/scan/scan.h"

struct place {
    char *base;
    size_t step; /* bytes per row of the table */
};
enum step_kind { STEP_CALC, STEP_ROWS, STEP_TAKE4, STEP_TAKE1, STEP_FILL, STEP_COPY };
struct step {
    enum step_kind kind;
    ir_ops_fn *fn;
    struct place dst, arg[3];
    size_t stride; /* TAKE: bytes between the rows of arg[0] */
};
struct elem_run {
    const struct scan_elem *elem;
    struct place guard, key, value[SCAN_VALUES];
    float *acc;    /* keyed [16, keys + 1, SCAN_VALUES], else [values, 16] */
    double *chunk; /* [chunks, keys * values] */
    double *sums;  /* [keys * values] */
    size_t width;  /* keys * values */
};
struct loop_run {
    struct step *once, *steps; /* before all rows; for each block */
    uint32_t once_count, steps_count, rows;
    struct elem_run *elems;
    uint32_t elems_count;
    char *registers;
    int32_t (*uniform)[16]; /* [ops] */
    int32_t *slot;          /* [rows] */
};
struct scan_exec {
    const struct scan_graph *g;
    const struct scan_source *columns;
    size_t rows, chunks, bytes;
    struct loop_run *loop; /* [loops] */
    char **store;          /* buffers of whole columns */
    uint32_t stores;
    char *collected[SCAN_ELEMS];
    float *sums[SCAN_ELEMS]; /* [keys * values] as f32, read by later loops */
    struct elem_run *by_id[SCAN_ELEMS];
    const struct ir_ops *ops;
    const struct scan_ops *scan;
};

/* ---- dispatch -------------------------------------------------------------------------------- */

static struct scan_ops ops_best;

static void pick_ops(void)
{
    scan_ops_base(&ops_best);
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        scan_ops_avx2(&ops_best);
#endif
}

const struct scan_ops *scan_ops(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, pick_ops);
    return &ops_best;
}

/* ---- binding --------------------------------------------------------------------------------- */

/* 64-byte aligned, large ones in huge pages. */
static void *lanes_alloc(size_t bytes)
{
    bytes = (BASE_MAX(bytes, (size_t)64) + 63) & ~(size_t)63;
    void *p = aligned_alloc(64, bytes);
    if (p == NULL)
        abort();
    memset(p, 0, bytes);
    return p;
}

/* One loop being bound. */
struct bind {
    struct scan_exec *x;
    const struct scan_loop *l;
    struct loop_run *r;
    struct place *at;     /* [ops] */
    enum scan_home *home; /* [ops] */
    uint32_t *reg;        /* [ops] */
};

/* Not a power of two apart: the low bits of a load and of the store before it would agree, and the
 * load would wait for nothing. */
static size_t register_bytes(uint32_t rows)
{
    return rows * sizeof(float) + 192;
}

static struct place register_at(const struct bind *b, uint32_t i)
{
    return (struct place){b->r->registers + (size_t)i * register_bytes(b->r->rows), 0};
}

static struct step *new_step(struct step **list, uint32_t *count)
{
    *list = mem_grow(*list, *count + 1, sizeof(**list));
    struct step *s = &(*list)[(*count)++];
    memset(s, 0, sizeof(*s));
    return s;
}

/* A load that lies as the arithmetic wants it, or a step that takes it into a register. */
static void bind_load(struct bind *b, uint32_t i)
{
    const struct ir_op *op = &b->l->body.ops[i];
    if (op->imm >= SCAN_COLUMNS) {
        b->at[i] = (struct place){b->x->collected[op->imm - SCAN_COLUMNS], sizeof(float)};
        return;
    }
    const struct scan_source *c = &b->x->columns[op->imm];
    char *data = (char *)(uintptr_t)c->data;
    if (b->home[i] == SCAN_IN_PLACE) {
        b->at[i] = (struct place){data, c->stride};
        return;
    }
    b->at[i] = register_at(b, b->reg[i]);
    struct step *s = new_step(&b->r->steps, &b->r->steps_count);
    s->kind = b->x->g->column[op->imm] == IR_ELEM_I8 ? STEP_TAKE1 : STEP_TAKE4;
    s->dst = b->at[i];
    s->arg[0] = (struct place){data, c->stride};
    s->stride = c->stride;
}

static void bind_calc(struct bind *b, uint32_t i)
{
    const struct ir_op *op = &b->l->body.ops[i];
    bool uniform = b->home[i] == SCAN_UNIFORM;
    uint32_t arg[5], args = ir_op_args(op, arg), variant = 0;
    b->at[i] = uniform ? (struct place){(char *)b->r->uniform[i], 0} : register_at(b, b->reg[i]);
    struct step *s = uniform ? new_step(&b->r->once, &b->r->once_count)
                             : new_step(&b->r->steps, &b->r->steps_count);
    s->kind = STEP_CALC;
    s->dst = b->at[i];
    for (uint32_t k = 0; k < 3; k++)
        s->arg[k] = b->at[arg[k < args ? k : 0]];
    for (uint32_t k = 0; k < args; k++)
        variant |= !uniform && b->home[arg[k]] == SCAN_UNIFORM ? 1u << k : 0u;
    s->fn = b->x->ops->fn[op->code][b->l->body.ops[arg[0]].type & 3u][variant];
}

static void bind_op(struct bind *b, uint32_t i)
{
    const struct ir_op *op = &b->l->body.ops[i];
    if (b->home[i] == SCAN_DEAD)
        return;
    if (op->code == IR_CONST) {
        b->r->uniform[i][0] = op->imm;
        b->at[i] = (struct place){(char *)b->r->uniform[i], 0};
    } else if (op->code == IR_LOAD && b->home[i] == SCAN_UNIFORM) {
        const struct ir_op *index = &b->l->body.ops[op->arg[0]];
        b->at[i] = (struct place){(char *)(b->x->sums[op->imm - SCAN_COLUMNS] + index->imm), 0};
    } else if (op->code == IR_LOAD) {
        bind_load(b, i);
    } else if (op->code == IR_INDEX) {
        b->at[i] = register_at(b, b->reg[i]);
        struct step *s = new_step(&b->r->steps, &b->r->steps_count);
        s->kind = STEP_ROWS;
        s->dst = b->at[i];
    } else {
        bind_calc(b, i);
    }
}

/* What an elem reads must be lanes: a value that is the same for all rows is spread out once. */
static struct place lanes_of(struct bind *b, uint32_t id, uint32_t *ret_spread)
{
    if (b->home[id] != SCAN_UNIFORM)
        return b->at[id];
    struct step *s = new_step(&b->r->once, &b->r->once_count);
    s->kind = STEP_FILL;
    s->arg[0] = b->at[id];
    s->dst = register_at(b, (*ret_spread)++);
    return s->dst;
}

static void bind_elem(struct bind *b, const struct scan_elem *e, struct elem_run *r,
                      uint32_t *spread)
{
    struct scan_exec *x = b->x;
    r->elem = e;
    r->width = (size_t)e->keys * e->values;
    for (uint32_t k = 0; k < e->values; k++)
        r->value[k] = lanes_of(b, e->value[k], spread);
    if (e->collect) {
        struct step *s = new_step(&b->r->steps, &b->r->steps_count);
        s->kind = STEP_COPY;
        s->arg[0] = r->value[0];
        s->dst = (struct place){x->collected[e->id], sizeof(float)};
        return;
    }
    if (e->guard != IR_NONE)
        r->guard = lanes_of(b, e->guard, spread);
    if (e->key != IR_NONE)
        r->key = lanes_of(b, e->key, spread);
    size_t acc =
        e->key != IR_NONE ? (size_t)16 * (e->keys + 1) * SCAN_VALUES : (size_t)16 * e->values;
    r->acc = lanes_alloc(acc * sizeof(float));
    r->chunk = mem_array(BASE_MAX(x->chunks, (size_t)1) * r->width, sizeof(*r->chunk));
    r->sums = mem_array(r->width, sizeof(*r->sums));
}

static bool elem_reads(const struct elem_run *e, const char *from)
{
    bool reads = e->guard.base == from || e->key.base == from;
    for (uint32_t v = 0; !e->elem->collect && v < e->elem->values; v++)
        reads |= e->value[v].base == from;
    return reads;
}

/* The step that computes what the COPY step i stores, if nothing else reads it: it may compute it
 * in the column straight away. IR_NONE: somebody does. */
static uint32_t sole_maker(const struct loop_run *r, uint32_t i)
{
    const char *from = r->steps[i].arg[0].base;
    uint32_t maker = IR_NONE;
    for (uint32_t k = 0; k < i; k++) {
        if (r->steps[k].dst.base == from && r->steps[k].kind != STEP_COPY)
            maker = k;
    }
    for (uint32_t k = maker + 1; maker != IR_NONE && k < r->steps_count; k++) {
        for (int a = 0; a < 3; a++) {
            if (k != i && r->steps[k].arg[a].base == from)
                return IR_NONE;
        }
    }
    for (uint32_t k = 0; k < r->elems_count; k++) {
        if (elem_reads(&r->elems[k], from))
            return IR_NONE;
    }
    return maker;
}

static void store_directly(struct loop_run *r)
{
    for (uint32_t i = 0; i < r->steps_count; i++) {
        uint32_t maker = r->steps[i].kind == STEP_COPY ? sole_maker(r, i) : IR_NONE;
        if (maker == IR_NONE)
            continue;
        r->steps[maker].dst = r->steps[i].dst;
        memmove(&r->steps[i], &r->steps[i + 1], (r->steps_count - i - 1) * sizeof(*r->steps));
        r->steps_count--;
        i--;
    }
}

static void bind_loop(struct scan_exec *x, uint32_t i)
{
    const struct scan_loop *l = &x->g->loop[i];
    uint32_t n = BASE_MAX(l->body.count, 1u), spread;
    struct bind b = {.x = x, .l = l, .r = &x->loop[i]};
    b.at = mem_array(n, sizeof(*b.at));
    b.home = mem_array(n, sizeof(*b.home));
    b.reg = mem_array(n, sizeof(*b.reg));
    for (uint32_t k = 0; k < l->body.count; k++) {
        const struct ir_op *op = &l->body.ops[k];
        b.home[k] = scan_home_of(x->g, &l->body, k, b.home);
        if (b.home[k] == SCAN_IN_PLACE && op->imm < SCAN_COLUMNS &&
            x->columns[op->imm].stride != sizeof(float))
            b.home[k] = SCAN_REGISTER;
    }
    spread = scan_registers(l, b.home, b.reg);
    uint32_t most = spread + l->count * (SCAN_VALUES + 2);
    struct scan_block block = scan_block_of(x->g, l);
    b.r->rows = block.rows > 0 ? block.rows : SCAN_ROWS_MIN;
    b.r->registers = lanes_alloc((size_t)most * register_bytes(b.r->rows));
    b.r->uniform = mem_array(n, sizeof(*b.r->uniform));
    b.r->slot = mem_array(b.r->rows, sizeof(*b.r->slot));
    b.r->elems = mem_array(BASE_MAX(l->count, 1u), sizeof(*b.r->elems));
    b.r->elems_count = l->count;
    for (uint32_t k = 0; k < l->body.count; k++)
        bind_op(&b, k);
    for (uint32_t k = 0; k < l->count; k++) {
        bind_elem(&b, &l->elems[k], &b.r->elems[k], &spread);
        x->by_id[l->elems[k].id] = &b.r->elems[k];
    }
    store_directly(b.r);
    free(b.at);
    free(b.home);
    free(b.reg);
}

/* ---- whole columns between loops ------------------------------------------------------------- */

/* Last loop that loads the elem; wanted ones stay to the end. */
static uint32_t last_reader(const struct scan_graph *g, uint32_t id)
{
    uint32_t last = g->wanted[id] ? g->loops : 0;
    for (uint32_t i = 0; i < g->loops; i++) {
        for (uint32_t k = 0; k < g->loop[i].body.count; k++) {
            const struct ir_op *op = &g->loop[i].body.ops[k];
            if (op->code == IR_LOAD && op->imm == (int32_t)(SCAN_COLUMNS + id))
                last = BASE_MAX(last, i);
        }
    }
    return last;
}

/* Buffers by liveness: as an operator-at-a-time engine that is worth comparing with would do. */
static void place_columns(struct scan_exec *x)
{
    const struct scan_graph *g = x->g;
    uint32_t busy_until[SCAN_ELEMS] = {0}; /* by buffer: last loop that reads it */
    for (uint32_t i = 0; i < g->loops; i++) {
        for (uint32_t k = 0; k < g->loop[i].count; k++) {
            const struct scan_elem *e = &g->loop[i].elems[k];
            if (!e->collect) {
                x->sums[e->id] = mem_array((size_t)e->keys * e->values, sizeof(float));
                continue;
            }
            uint32_t s = 0;
            while (s < x->stores && busy_until[s] >= i)
                s++;
            if (s == x->stores) {
                x->store[x->stores++] = lanes_alloc(x->rows * sizeof(float));
                x->bytes += x->rows * sizeof(float);
            }
            busy_until[s] = BASE_MAX(last_reader(g, e->id), i);
            x->collected[e->id] = x->store[s];
        }
    }
}

struct scan_exec *scan_exec_open(const struct scan_graph *g, const struct scan_source *columns,
                                 size_t rows)
{
    struct scan_exec *x = mem_alloc(sizeof(*x));
    x->g = g;
    x->columns = columns;
    x->rows = rows;
    x->chunks = (rows + SCAN_CHUNK - 1) / SCAN_CHUNK;
    x->ops = ir_ops();
    x->scan = scan_ops();
    x->loop = mem_array(BASE_MAX(g->loops, 1u), sizeof(*x->loop));
    x->store = mem_array(SCAN_ELEMS, sizeof(*x->store));
    place_columns(x);
    for (uint32_t i = 0; i < g->loops; i++)
        bind_loop(x, i);
    return x;
}

void scan_exec_close(struct scan_exec **px)
{
    struct scan_exec *x = *px;
    if (x == NULL)
        return;
    for (uint32_t i = 0; i < x->g->loops; i++) {
        struct loop_run *r = &x->loop[i];
        for (uint32_t k = 0; k < r->elems_count; k++) {
            free(r->elems[k].acc);
            free(r->elems[k].chunk);
            free(r->elems[k].sums);
        }
        free(r->elems);
        free(r->once);
        free(r->steps);
        free(r->registers);
        free(r->uniform);
        free(r->slot);
    }
    for (uint32_t i = 0; i < x->stores; i++)
        free(x->store[i]);
    for (uint32_t i = 0; i < SCAN_ELEMS; i++)
        free(x->sums[i]);
    free(x->store);
    free(x->loop);
    free(x);
    *px = NULL;
}

/* ---- a block --------------------------------------------------------------------------------- */

static void *at(struct place p, size_t row)
{
    return p.base + row * p.step;
}

static void take4(int32_t *d, const char *from, size_t stride, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        memcpy(&d[i], from + i * stride, sizeof(*d));
}

static void take1(const struct scan_exec *x, int32_t *d, const char *from, size_t stride,
                  uint32_t n)
{
    if (stride == 1) {
        x->ops->widen(d, (const int8_t *)from, n);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        d[i] = (int8_t)from[i * stride];
}

static void run_step(const struct scan_exec *x, const struct step *s, size_t row, uint32_t n)
{
    void *d = at(s->dst, row);
    const void *a = at(s->arg[0], row);
    switch (s->kind) {
    case STEP_CALC:
        s->fn(d, a, at(s->arg[1], row), at(s->arg[2], row), n);
        break;
    case STEP_ROWS:
        for (uint32_t i = 0; i < n; i++)
            ((int32_t *)d)[i] = (int32_t)(row + i);
        break;
    case STEP_TAKE4:
        take4(d, a, s->stride, n);
        break;
    case STEP_TAKE1:
        take1(x, d, a, s->stride, n);
        break;
    case STEP_FILL:
        x->ops->fill(d, a, n);
        break;
    case STEP_COPY:
        memmove(d, a, n * sizeof(float));
        break;
    }
}

static void add_block(const struct scan_exec *x, const struct loop_run *r, const struct elem_run *e,
                      size_t row, uint32_t n)
{
    const int32_t *guard = e->elem->guard != IR_NONE ? at(e->guard, row) : NULL;
    if (e->elem->key == IR_NONE) {
        for (uint32_t k = 0; k < e->elem->values; k++) {
            const float *v = at(e->value[k], row);
            if (guard)
                x->scan->sum16_if(e->acc + (size_t)k * 16, guard, v, n);
            else
                x->ops->sum16(e->acc + (size_t)k * 16, v, n);
        }
        return;
    }
    const float *value[SCAN_VALUES];
    for (uint32_t k = 0; k < e->elem->values; k++)
        value[k] = at(e->value[k], row);
    x->scan->slots(r->slot, at(e->key, row), guard, (int32_t)e->elem->keys, n);
    x->scan->hash16(e->acc, e->elem->keys, r->slot, value, e->elem->values, n);
}

/* ---- a launch -------------------------------------------------------------------------------- */

static void start_chunk(const struct elem_run *e)
{
    size_t floats = e->elem->key != IR_NONE ? (size_t)16 * (e->elem->keys + 1) * SCAN_VALUES
                                            : (size_t)16 * e->elem->values;
    if (!e->elem->collect)
        memset(e->acc, 0, floats * sizeof(float));
}

float scan_tree16(float *acc, size_t step)
{
    for (size_t half = 8; half > 0; half /= 2) {
        for (size_t j = 0; j < half; j++)
            acc[j * step] = acc[j * step] + acc[(j + half) * step];
    }
    return acc[0];
}

static void end_chunk(const struct elem_run *e, size_t chunk)
{
    if (e->elem->collect)
        return;
    double *to = e->chunk + chunk * e->width;
    uint32_t values = e->elem->values;
    for (uint32_t k = 0; k < e->elem->keys; k++) {
        for (uint32_t v = 0; v < values; v++) {
            if (e->elem->key == IR_NONE)
                to[v] = (double)scan_tree16(e->acc + (size_t)v * 16, 1);
            else
                to[k * values + v] = (double)scan_tree16(e->acc + (size_t)k * SCAN_VALUES + v,
                                                         (size_t)(e->elem->keys + 1) * SCAN_VALUES);
        }
    }
}

static void run_chunk(const struct scan_exec *x, const struct loop_run *r, size_t chunk)
{
    size_t end = BASE_MIN((chunk + 1) * SCAN_CHUNK, x->rows);
    for (uint32_t k = 0; k < r->elems_count; k++)
        start_chunk(&r->elems[k]);
    for (size_t row = chunk * SCAN_CHUNK; row < end; row += r->rows) {
        uint32_t n = (uint32_t)BASE_MIN(end - row, (size_t)r->rows);
        for (uint32_t i = 0; i < r->steps_count; i++)
            run_step(x, &r->steps[i], row, n);
        for (uint32_t k = 0; k < r->elems_count; k++) {
            if (!r->elems[k].elem->collect)
                add_block(x, r, &r->elems[k], row, n);
        }
    }
    for (uint32_t k = 0; k < r->elems_count; k++)
        end_chunk(&r->elems[k], chunk);
}

/* All sockets' chunks in rising order: the all-reduce of a launch. */
static void gather(struct scan_exec *x, const struct elem_run *e)
{
    if (e->elem->collect)
        return;
    for (size_t i = 0; i < e->width; i++) {
        double sum = 0.0;
        for (size_t c = 0; c < x->chunks; c++)
            sum += e->chunk[c * e->width + i];
        e->sums[i] = sum;
        x->sums[e->elem->id][i] = (float)sum;
    }
}

void scan_run(struct scan_exec *x, uint32_t sockets)
{
    for (uint32_t i = 0; i < x->g->loops; i++) {
        struct loop_run *r = &x->loop[i];
        for (uint32_t k = 0; k < r->once_count; k++)
            run_step(x, &r->once[k], 0, r->once[k].kind == STEP_FILL ? r->rows : 1);
        for (uint32_t s = 0; s < sockets; s++) {
            for (size_t c = x->chunks * s / sockets; c < x->chunks * (s + 1) / sockets; c++)
                run_chunk(x, r, c);
        }
        for (uint32_t k = 0; k < r->elems_count; k++)
            gather(x, &r->elems[k]);
    }
}

void scan_run_native(struct scan_exec *x, uint32_t sockets, scan_native_fn *const *loops)
{
    const void *column[SCAN_COLUMNS];
    double *chunk[SCAN_ELEMS] = {NULL};
    for (uint32_t i = 0; i < x->g->columns; i++)
        column[i] = x->columns[i].data;
    for (uint32_t i = 0; i < x->g->loops; i++) {
        const struct loop_run *r = &x->loop[i];
        for (uint32_t s = 0; s < sockets; s++) {
            for (size_t c = x->chunks * s / sockets; c < x->chunks * (s + 1) / sockets; c++) {
                for (uint32_t k = 0; k < r->elems_count; k++)
                    chunk[r->elems[k].elem->id] =
                        r->elems[k].chunk ? r->elems[k].chunk + c * r->elems[k].width : NULL;
                loops[i](column, (void *const *)x->collected, (const float *const *)x->sums,
                         c * SCAN_CHUNK, BASE_MIN((c + 1) * SCAN_CHUNK, x->rows), chunk);
            }
        }
        for (uint32_t k = 0; k < r->elems_count; k++)
            gather(x, &r->elems[k]);
    }
}

const double *scan_sums(const struct scan_exec *x, uint32_t elem)
{
    return elem < SCAN_ELEMS && x->by_id[elem] ? x->by_id[elem]->sums : NULL;
}

const void *scan_collected(const struct scan_exec *x, uint32_t elem)
{
    return elem < SCAN_ELEMS ? x->collected[elem] : NULL;
}

size_t scan_bytes(const struct scan_exec *x)
{
    return x->bytes;
}
