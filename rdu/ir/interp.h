/* The blocked interpreter's inside. A body is lowered once to a list of steps over registers; a
 * register is either uniform (one value per position of the outer domain) or a lane register
 * (IR_LANES neighbouring elements of the last dimension), so that one dispatch does up to
 * IR_LANES elements. Private to rdu/ir/. */
#ifndef SWITCHYARD_RDU_INTERP_H
#define SWITCHYARD_RDU_INTERP_H

#include "rdu/ir/ir.h"

#define IR_LANES 128

/* d[i] = op(a[i], b[i], c[i]) for n lanes; in the variant with bit k set argument k is one value
 * for all lanes. d may be one of the arguments. */
typedef void ir_ops_fn(void *d, const void *a, const void *b, const void *c, uint32_t n);
struct ir_ops {
    ir_ops_fn *fn[IR_CODES][4][8]; /* by code, type of the first argument, variant */
    void (*copy)(void *d, const void *a, uint32_t n);
    void (*fill)(void *d, const void *a, uint32_t n);
    void (*widen)(int32_t *d, const int8_t *a, uint32_t n);
    void (*narrow)(int8_t *d, const int32_t *a, uint32_t n);
    void (*halves)(float *d, const uint16_t *a, uint32_t n);
    /* Element i into acc[i % 16]: rule 1's partial sums, and the same for a maximum. */
    void (*sum16)(float *acc, const float *a, uint32_t n);
    void (*max16)(float *acc, const float *a, uint32_t n);
};
void ir_ops_base(struct ir_ops *ret);
void ir_ops_avx2(struct ir_ops *ret); /* the same source for AVX2 and FMA: the same bits */
/* The best of them here, once. */
const struct ir_ops *ir_ops(void);

enum ir_step_kind {
    STEP_OP, STEP_CLAMP, STEP_DIM, STEP_ARG, STEP_LOAD, STEP_WEIGHT, STEP_VECTOR, STEP_KV,
    STEP_KV_PUT, STEP_REDUCE,
};
struct ir_reg {
    uint32_t at;    /* offset into the register file, in 4-byte units */
    bool lane;
    int32_t stride; /* of an i32 value between neighbouring lanes: 0 uniform, IR_STRIDE_ANY */
};
#define IR_STRIDE_ANY INT32_MIN
struct ir_step {
    enum ir_step_kind kind;
    uint32_t code, type;
    int32_t imm;
    ir_ops_fn *fn;
    struct ir_reg dst, arg[5];
    uint32_t args;
    /* REDUCE: steps [this + 1, end) are its body */
    uint32_t end, reduce, carried, index;      /* index: register of the reduce index */
    struct ir_reg carry[IR_CARRIED], yield[IR_CARRIED];
    bool in_place[IR_CARRIED];                 /* the yielded value is computed in the carry */
};
struct ir_exec_loop {
    struct ir_shape shape;
    struct ir_step *steps;
    uint32_t steps_count, prologue;            /* steps [0, prologue) are uniform: once per row */
    uint32_t regs;                             /* size of the register file, 4-byte units */
    uint32_t index[IR_DIMS];                   /* register of each domain index; IR_NONE = unused */
    struct ir_reg result;                      /* at == IR_NONE for a foreach */
    struct { uint32_t at; int32_t bits; } *consts;
    uint32_t consts_count;
    bool by_weight_rows;                       /* lanes are weight rows: tokens innermost */
};
struct ir_exec {
    struct ir_exec_loop *loops[IR_MATMULS];
    uint32_t count[IR_MATMULS];
};
void ir_lower(const struct ir_body *b, const struct ir_shape *shape, struct ir_exec_loop *ret);
void ir_lower_done(struct ir_exec_loop *l);

/* ---- what a run reads ------------------------------------------------------------------------ */

struct ir_tensor {
    void *data;
    size_t row_stride; /* elements */
    uint32_t dim2;     /* size of the last of three dimensions */
    uint32_t elem;
    void *owned;       /* to be freed, NULL if it belongs to somebody else */
};
struct ir_env {
    const struct rdu_graph *graph;
    const struct rdu_args *args;
    uint32_t section, layer, kv_heads, head_dim;
    uint32_t token_from, n_tokens; /* of this loop: a token group for deltas, else all */
    uint32_t ctx_blocks;
    const struct rdu_delta *delta;
    uint32_t delta_rows, delta_cols;
    const struct ir_tensor *operand[IR_OPERANDS + IR_DEFINE_LOOPS];
    struct ir_tiles *tiles;
};
uint32_t ir_env_dim(const struct ir_env *e, int32_t dim);
/* Run the whole domain; out NULL for a foreach. */
void ir_run_loop(const struct ir_exec_loop *l, const struct ir_env *e, const struct ir_tensor *out);

/* ---- weights --------------------------------------------------------------------------------- */

/* A weight matrix of the environment: the slot's, or a delta's A or B. */
struct rdu_weight ir_env_weight(const struct ir_env *e, int32_t slot);
/* Decoded runs of up to IR_LANES rows, a direct-mapped cache. */
struct ir_tiles *ir_tiles_open(void);
void ir_tiles_close(struct ir_tiles **t);
/* n lanes of WEIGHT_*: rows row .. row + n - 1 at one column (block, half). Returns [n] values. */
const void *ir_tiles_rows(struct ir_tiles *t, const struct rdu_weight *w, uint32_t code,
                          uint32_t row, uint32_t n, uint32_t col);
/* One value anywhere; neighbours are cached. The bits of an f32 or i32. */
int32_t ir_tiles_one(struct ir_tiles *t, const struct rdu_weight *w, uint32_t code, uint32_t row,
                     uint32_t col);

#endif
