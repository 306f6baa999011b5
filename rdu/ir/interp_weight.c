/* Weights as the interpreter reads them. Decoding one element of a packed block costs as much as
 * decoding its whole run of 32, so runs are decoded once for a block of rows (a tile) and kept
 * while the rows stay the same: one decode per step whatever the number of tokens. */
#include <stdlib.h>
#include <string.h>

#include "rdu/ir/interp.h"
#include "rdu/kernels/kernels.h"
#include "rdu/kernels/pack.h"

#define TILES 64
#define TILE_COLS RDU_BLOCK_ELEMS_MAX

/* Columns [col, col + cols) of rows [row, row + n) of the matrix at `data`. */
struct tile {
    const void *data;
    uint32_t row, n, col, cols, code;
    int32_t *value;    /* [cols][IR_LANES]: f32 or i32 bits */
    size_t value_cols; /* allocated */
    float d[IR_LANES], m[2][IR_LANES];
};
/* One row's decoded run or block, for loads that do not run along rows. */
struct row_cache {
    const void *data;
    uint32_t row, col, cols, code;
    int32_t value[TILE_COLS];
    struct rdu_run run;
};
struct ir_tiles {
    struct tile tile[TILES];
    struct row_cache row;
};

struct ir_tiles *ir_tiles_open(void)
{
    return mem_alloc(sizeof(struct ir_tiles));
}

void ir_tiles_close(struct ir_tiles **t)
{
    if (*t == NULL)
        return;
    for (int i = 0; i < TILES; i++)
        free((*t)->tile[i].value);
    free(*t);
    *t = NULL;
}

struct rdu_weight ir_env_weight(const struct ir_env *e, int32_t slot)
{
    const struct rdu_delta *d = e->delta;
    if (slot == IR_SLOT_A) {
        struct rdu_weight a = {
            .data = d->a, .rows = d->rank, .cols = e->delta_cols, .type = d->a_type};
        return a;
    }
    if (slot == IR_SLOT_B) {
        struct rdu_weight b = {
            .data = d->b, .rows = e->delta_rows, .cols = d->rank, .type = d->b_type};
        return b;
    }
    if (e->section != RDU_SECTION_LAYER)
        return e->args->globals[slot];
    size_t slots = e->graph->slots[1].count;
    return e->args->layers[e->layer * slots + (uint32_t)slot];
}

/* Matrix that holds `row`, which becomes relative to it: a chunk is packed on its own. */
static const uint8_t *matrix_of(const struct rdu_weight *w, uint32_t *row)
{
    if (w->chunk == NULL)
        return w->data;
    const uint8_t *data = w->chunk[*row / w->chunk_rows];
    *row %= w->chunk_rows;
    return data;
}

static const uint8_t *block_of(const struct rdu_weight *w, uint32_t row, uint32_t col)
{
    const uint8_t *data = matrix_of(w, &row);
    const struct rdu_type_info *info = rdu_type_info(w->type);
    size_t blocks = w->cols / info->block_elems;
    size_t idx = row / RDU_GROUP * blocks + col / info->block_elems;
    return data + idx * info->block_bytes * RDU_GROUP;
}

/* By runs of 32? Q3_K and Q6_K fold signed scales into their integers, which would lose the sign of
 * a zero: as floats they are decoded by the block. */
static bool is_by_run(enum rdu_type type, uint32_t code)
{
    return rdu_type_has_q8(type) &&
           (code != IR_WEIGHT_F32 || (type != RDU_Q3_K && type != RDU_Q6_K));
}

/* What is decoded at once: runs, whole blocks, or 32 floats. */
static uint32_t span_of(const struct rdu_weight *w, uint32_t code)
{
    if (is_by_run(w->type, code))
        return IR_RUN;
    return BASE_MAX(rdu_type_info(w->type)->block_elems, (uint32_t)IR_RUN);
}

/* Row `row`, columns [col, col + cols) to value[i * step], as floats or stored integers. */
static void decode(const struct rdu_weight *w, uint32_t code, uint32_t row, uint32_t col,
                   uint32_t cols, int32_t *value, size_t step, struct rdu_run *run)
{
    if (is_by_run(w->type, code)) {
        unsigned number = col % rdu_type_info(w->type)->block_elems / IR_RUN;
        rdu_packed_run(w->type, block_of(w, row, col), row % RDU_GROUP, number, run);
        bool has_min = rdu_type_has_min(w->type);
        for (uint32_t i = 0; i < IR_RUN; i++) {
            if (code != IR_WEIGHT_F32) {
                value[i * step] = run->q[i];
                continue;
            }
            float v = run->d * (float)run->q[i];
            v = has_min ? v + run->m[i / 16] : v;
            memcpy(&value[i * step], &v, sizeof(v));
        }
        return;
    }
    if (rdu_type_info(w->type)->block_elems == 1) {
        const uint8_t *data = matrix_of(w, &row);
        for (uint32_t i = 0; i < cols; i++) {
            float v = rdu_packed_f32(w->type, data, w->cols, row, col + i);
            memcpy(&value[i * step], &v, sizeof(v));
        }
        return;
    }
    uint8_t raw[RDU_BLOCK_BYTES_MAX];
    float block[RDU_BLOCK_ELEMS_MAX];
    rdu_unpack_block(w->type, block_of(w, row, col), row % RDU_GROUP, raw);
    rdu_dequant_row(w->type, raw, block, cols);
    for (uint32_t i = 0; i < cols; i++)
        memcpy(&value[i * step], &block[i], sizeof(float));
}

/* Columns named by a WEIGHT op's second argument: a column, a run, a half run. */
static uint32_t column_of(uint32_t code, uint32_t col)
{
    if (code == IR_WEIGHT_D)
        return col * IR_RUN;
    return code == IR_WEIGHT_M ? col * (IR_RUN / 2) : col;
}

static void fill_tile(struct tile *t, const struct rdu_weight *w, uint32_t code)
{
    if (t->value_cols < t->cols) {
        free(t->value);
        t->value_cols = t->cols;
        t->value = mem_array(t->value_cols * IR_LANES, sizeof(*t->value));
    }
    for (uint32_t i = 0; i < t->n; i++) {
        struct rdu_run run = {.d = 0};
        decode(w, code, t->row + i, t->col, t->cols, t->value + i, IR_LANES, &run);
        t->d[i] = run.d;
        t->m[0][i] = run.m[0];
        t->m[1][i] = run.m[1];
    }
}

static const void *identity(const struct rdu_weight *w)
{
    return w->chunk ? (const void *)w->chunk : w->data;
}

const void *ir_tiles_rows(struct ir_tiles *tiles, const struct rdu_weight *w, uint32_t code,
                          uint32_t row, uint32_t n, uint32_t col)
{
    uint32_t form = code == IR_WEIGHT_F32 ? IR_WEIGHT_F32 : IR_WEIGHT_Q;
    uint32_t at = column_of(code, col), span = span_of(w, form), first = at / span * span;
    struct tile *t = &tiles->tile[first / span % TILES];
    if (t->data != identity(w) || t->row != row || t->n != n || t->col != first ||
        t->code != form) {
        t->data = identity(w);
        t->row = row;
        t->n = n;
        t->col = first;
        t->cols = BASE_MIN(span, w->cols - first);
        t->code = form;
        fill_tile(t, w, form);
    }
    if (code == IR_WEIGHT_D)
        return t->d;
    if (code == IR_WEIGHT_M)
        return t->m[at % IR_RUN / (IR_RUN / 2)];
    return t->value + (size_t)(at - first) * IR_LANES;
}

int32_t ir_tiles_one(struct ir_tiles *tiles, const struct rdu_weight *w, uint32_t code,
                     uint32_t row, uint32_t col)
{
    uint32_t form = code == IR_WEIGHT_F32 ? IR_WEIGHT_F32 : IR_WEIGHT_Q;
    uint32_t at = column_of(code, col), span = span_of(w, form), first = at / span * span;
    struct row_cache *c = &tiles->row;
    if (c->data != identity(w) || c->row != row || c->col != first || c->code != form) {
        c->data = identity(w);
        c->row = row;
        c->col = first;
        c->cols = BASE_MIN(span, w->cols - first);
        c->code = form;
        memset(&c->run, 0, sizeof(c->run));
        decode(w, form, row, first, c->cols, c->value, 1, &c->run);
    }
    int32_t bits = c->value[at - first];
    if (code == IR_WEIGHT_D)
        memcpy(&bits, &c->run.d, sizeof(bits));
    else if (code == IR_WEIGHT_M)
        memcpy(&bits, &c->run.m[at % IR_RUN / (IR_RUN / 2)], sizeof(bits));
    return bits;
}
