/* The program as patterns, private to rdu/. A graph is a DAG of hash-consed nodes in topological
 * order (an operand's id is below its user's). A Loop is one parallel pattern: a domain of 1-3
 * sizes and one body of typed scalar SSA that says what a single element is; nested reduces live
 * inside the body, a guard lives in the same block as the value it guards. An External names a
 * leaf that is worth hand-writing (matmul, attention, ...) and carries its own definition in
 * Loops, so that everything can be interpreted: the interpreter is the oracle of every other
 * execution level. */
#ifndef SWITCHYARD_RDU_IR_H
#define SWITCHYARD_RDU_IR_H

#include "rdu/program.h"

#define IR_NONE UINT32_MAX
#define IR_DIMS 3
#define IR_OPERANDS 8      /* of a node */
#define IR_NODES_MAX 65536
#define IR_OPS_MAX 4096    /* of a body */
#define IR_CARRIED 3       /* values a reduce carries */
#define IR_REDUCE_DEPTH 4
#define IR_RUN 32          /* columns of one run of rules 5 and 6 */

/* Symbolic sizes beyond those of rdu.h; they occur only inside definitions of Externals. There,
 * RDU_DIM_CTX is rounded up to whole blocks. */
#define IR_DIM_CTX_BLOCKS (-4)
#define IR_DIM_RANK (-5) /* of the adapter delta being added */
#define IR_DIM_LOWEST (-5)

enum ir_elem { IR_ELEM_VOID, IR_ELEM_F32, IR_ELEM_I32, IR_ELEM_I8 }; /* stored */
enum ir_type { IR_TYPE_NONE, IR_TYPE_F32, IR_TYPE_I32, IR_TYPE_BOOL }; /* computed */

struct ir_shape {
    int32_t dim[IR_DIMS]; /* > 0 constant, < 0 symbolic; 1 beyond rank */
    uint32_t rank;
    uint32_t elem;        /* enum ir_elem */
};

/* ==== bodies ================================================================================== */

/* name, number of arguments (reduces count theirs apart) */
#define IR_OPS(X)                                                                                  \
    X(CONST, 0)         /* imm: the bits */                                                        \
    X(INDEX, 0)         /* imm: which dimension of the domain */                                   \
    X(RINDEX, 1)        /* of reduce arg[0] */                                                     \
    X(CARRIED_VALUE, 1) /* imm-th carried value of reduce arg[0], inside it */                     \
    X(RESULT, 1)        /* imm-th result of reduce arg[0], after it */                             \
    X(DIM, 0)           /* imm: symbolic size, as i32 */                                           \
    X(WINDOW, 0)        /* the layer's attention window, 0 = unlimited */                          \
    X(DELTA_SCALE, 0)   /* of the adapter delta being added */                                     \
    X(ADD, 2)                                                                                      \
    X(SUB, 2) X(MUL, 2) X(DIV, 2) X(MOD, 2) X(MAX, 2) X(MIN, 2) X(FMA, 3) X(NEG, 1) X(ABS, 1)      \
        X(SQRT, 1) X(EXP, 1) X(TANH, 1) X(LOG, 1) X(RINT, 1) X(TO_F32, 1) X(TO_I32, 1)             \
            X(CLAMP, 1) /* i32 into [0, imm), imm a size: what makes a gathered index safe */      \
        X(LT, 2) X(LE, 2) X(EQ, 2) X(AND, 2) X(OR, 2) X(NOT, 1) X(SELECT, 3)                       \
            X(LOAD, 3)   /* imm-th operand at 1, 2 (row, flat column) or 3 indices */              \
        X(WEIGHT_F32, 2) /* imm: slot; row, column -> dequantised */                               \
        X(VECTOR, 1)     /* imm: slot of one row, stored as plain f32; column */                   \
        X(WEIGHT_Q, 2)   /* row, column -> stored integer, times its scale per 16 if it has one */ \
        X(WEIGHT_D, 2)   /* row, block of 32 -> scale of the run */                                \
        X(WEIGHT_M, 2)   /* row, half run of 16 -> its minimum */                                  \
        X(KV_K, 5) X(KV_V, 5)         /* token, kv head, position, d, guard -> element or 0 */     \
        X(KV_PUT_K, 5) X(KV_PUT_V, 5) /* token, kv head, position, d, value */                     \
        X(REDUCE, 0) /* body [this + 1, end); reduce kind; count: imm, or arg[4] if not NONE;      \
                        arg[0..carried) initial values, yield[] next values */

enum ir_code {
#define IR_CODE(name, args) IR_##name,
    IR_OPS(IR_CODE)
#undef IR_CODE
    IR_CODES,
};
const char *ir_code_name(uint32_t code);
uint32_t ir_code_args(uint32_t code);

/* SEQ: in rising order, any number of carried values. SUM16: rule 1, one value that starts at 0.
 * MAX: one value from its initial one, the yielded value is the candidate, a NaN never wins; any
 * order. */
enum ir_reduce { IR_REDUCE_SEQ, IR_REDUCE_SUM16, IR_REDUCE_MAX };

/* Pseudo slots of a delta's two matrices. */
#define IR_SLOT_A 0x40000000
#define IR_SLOT_B 0x40000001

struct ir_op {
    uint32_t code;   /* enum ir_code */
    uint32_t type;   /* enum ir_type of the value */
    uint32_t arg[5]; /* value ids = indices into ops, below this op's own; IR_NONE where unused */
    int32_t imm;
    uint32_t parent; /* the REDUCE this op is inside of, IR_NONE at top level */
    uint32_t reduce, carried, end, yield[IR_CARRIED]; /* REDUCE only, else 0 */
};

/* A body under construction keeps the stack of open reduces; equal ops in sight are made once. */
struct ir_body {
    struct ir_op *ops;
    uint32_t count, cap;
    uint32_t open[IR_REDUCE_DEPTH], depth;
    uint32_t result; /* the element; IR_NONE for a foreach Loop, which only stores */
    bool failed;     /* too many ops or reduces: what it holds is not usable */
};
void ir_body_init(struct ir_body *b);
void ir_body_done(struct ir_body *b);
bool ir_body_equal(const struct ir_body *a, const struct ir_body *b);
uint64_t ir_body_hash(const struct ir_body *b);
void ir_body_copy(struct ir_body *dst, const struct ir_body *src);

uint32_t ir_emit(struct ir_body *b, enum ir_code code, enum ir_type type, int32_t imm,
                 const uint32_t *arg, uint32_t args);
uint32_t ir_f32(struct ir_body *b, float v);
uint32_t ir_i32(struct ir_body *b, int32_t v);
uint32_t ir_index(struct ir_body *b, uint32_t dim);
uint32_t ir_dim(struct ir_body *b, int32_t dim); /* DIM, or CONST if it is one */
uint32_t ir_op1(struct ir_body *b, enum ir_code code, uint32_t a);             /* type of a */
/* Type of a; bool for compares. */
uint32_t ir_op2(struct ir_body *b, enum ir_code code, uint32_t a, uint32_t c);
uint32_t ir_fma(struct ir_body *b, uint32_t a, uint32_t c, uint32_t d);
uint32_t ir_select(struct ir_body *b, uint32_t cond, uint32_t yes, uint32_t no);
uint32_t ir_clamp(struct ir_body *b, uint32_t i, int32_t size);
uint32_t ir_load1(struct ir_body *b, uint32_t operand, enum ir_type type, uint32_t i);
uint32_t ir_load2(struct ir_body *b, uint32_t operand, enum ir_type type, uint32_t i, uint32_t j);
uint32_t ir_load3(struct ir_body *b, uint32_t operand, enum ir_type type, uint32_t i, uint32_t j,
                  uint32_t k);
uint32_t ir_weight(struct ir_body *b, enum ir_code code, int32_t slot, uint32_t row, uint32_t col);
/* count: a constant or symbolic size, or 0 and count_value. */
struct ir_reduce_spec {
    enum ir_reduce kind;
    int32_t count;
    uint32_t count_value; /* IR_NONE unless count is 0 */
    uint32_t init[IR_CARRIED], carried;
};
uint32_t ir_reduce_begin(struct ir_body *b, const struct ir_reduce_spec *spec);
/* The usual one: a constant or symbolic count, one carried value. */
uint32_t ir_reduce_over(struct ir_body *b, enum ir_reduce kind, int32_t count, uint32_t init);
uint32_t ir_reduce_index(struct ir_body *b, uint32_t reduce);
uint32_t ir_reduce_carried(struct ir_body *b, uint32_t reduce, uint32_t which);
void ir_reduce_end(struct ir_body *b, uint32_t reduce, const uint32_t *yield);
uint32_t ir_reduce_result(struct ir_body *b, uint32_t reduce, uint32_t which);

/* ==== nodes =================================================================================== */

enum ir_kind { IR_INPUT, IR_TABLE, IR_LOOP, IR_EXTERNAL };
enum ir_input { IR_INPUT_X, IR_INPUT_TOKENS, IR_INPUT_POS, IR_INPUT_OUTS, IR_INPUT_ENDS };
enum ir_external { IR_EXT_MATMUL, IR_EXT_DELTA, IR_EXT_KV_APPEND, IR_EXT_ATTENTION, IR_EXT_COPY };
enum ir_effect { IR_PURE = 0, IR_READS_KV = 1, IR_WRITES_KV = 2 };

/* Which operator a Loop came from. It is a hint, not a promise: a pass that wants to use a leaf
 * makes the operator's body again from the hint and compares (ir_loop_is). */
enum ir_oper {
    IR_OPER_NONE, IR_OPER_EMBED, IR_OPER_NORM, IR_OPER_QUANT_D, IR_OPER_QUANT_Q, IR_OPER_QUANT_S,
    IR_OPER_ADD, IR_OPER_ADD_BIAS, IR_OPER_SCALE, IR_OPER_SOFTCAP, IR_OPER_SILU_MUL,
    IR_OPER_GELU_MUL, IR_OPER_ROPE, IR_OPER_TAKE_OUTS, IR_OPER_CENTER, IR_OPER_GELU,
    IR_OPER_MEAN_POOL, IR_OPERS,
};
const char *ir_oper_name(uint32_t oper);
/* 4-byte fields only: hints are compared as bytes. */
struct ir_hint {
    uint32_t oper;             /* enum ir_oper */
    uint32_t slot, slot_rows;  /* EMBED, NORM, ADD_BIAS */
    float f;                   /* eps, factor, cap */
    uint32_t heads, head_dim, rot, style, table_rows; /* ROPE */
};

/* 4-byte fields only, as above. */
struct ir_key {
    uint32_t kind, section;
    uint32_t which;            /* enum ir_input, table index, enum ir_external */
    struct ir_shape shape;     /* of the value; a Loop's domain */
    uint32_t operand[IR_OPERANDS], operands;
    uint32_t slot;             /* MATMUL, DELTA; IR_NONE */
    uint32_t heads, kv_heads, head_dim, windowed; /* ATTENTION, KV_APPEND */
    float scale, softcap;
    uint32_t effect;           /* bits of enum ir_effect */
    struct ir_hint hint;
};
struct ir_node {
    struct ir_key key;
    struct ir_body body; /* LOOP only */
    uint64_t hash;
};

struct ir_table {
    char *name;
    float *data;
    uint32_t rows, cols;
};
struct ir_section {
    bool begun, ended;
    uint32_t input;  /* carried-in x, or the tokens of EMBED */
    uint32_t result;
    uint32_t width;
};
/* What simplification did. */
struct ir_simplify_counts {
    uint32_t folded;  /* ops replaced by a constant or an argument */
    uint32_t moved;   /* ops taken out of a reduce */
    uint32_t removed; /* ops nobody used */
};
struct ir_counts {
    uint32_t nodes_before, nodes_after;
    uint32_t ops_before, ops_after; /* scalar operations in loop bodies */
    uint32_t copies;                /* loops that only copied */
    uint32_t hoisted;               /* nodes made for wanted outputs only */
    struct ir_simplify_counts body;
};
struct rdu_graph {
    char *name;
    enum rdu_numerics numerics;
    struct ir_node *nodes;
    uint32_t count, cap;
    uint32_t *index; /* open-addressed hash of node ids + 1 */
    uint32_t index_cap;
    struct ir_section section[RDU_SECTIONS];
    int current;     /* section being built, -1 = none */
    struct rdu_slot_list slots[2]; /* 0: global, 1: layer */
    uint32_t slots_cap[2];
    struct ir_table *tables;
    uint32_t tables_count;
    struct err err;  /* sticky: the first thing that went wrong; code ERR_OK = none */
    uint32_t kv_heads, head_dim; /* of the attention; 0 = none */
    struct ir_counts counts; /* of the simplification that made this graph */
    struct ir_exec *exec; /* made by ir_exec_prepare, [exec_count]; NULL before */
    uint32_t exec_count;
};

struct ir_shape ir_shape2(enum ir_elem elem, int32_t rows, int32_t cols);
struct ir_shape ir_shape3(enum ir_elem elem, int32_t d0, int32_t d1, int32_t d2);
/* Product of the dimensions after the first; 0 if one is symbolic. */
uint32_t ir_shape_width(const struct ir_shape *s);
/* Elements per row, when all but the first dimension are constant; the same storage seen as 2-D. */
bool ir_shape_same_rows(const struct ir_shape *a, const struct ir_shape *b);
enum ir_type ir_elem_type(uint32_t elem);
size_t ir_elem_bytes(uint32_t elem);
void ir_dim_print(int32_t dim, struct buf *out);

void ir_fail(struct rdu_graph *g, const char *fmt, ...) BASE_PRINTF(2, 3);
bool ir_failed(const struct rdu_graph *g);
/* The layer table in LAYER, the global one elsewhere. */
struct rdu_slot_list *ir_slots(struct rdu_graph *g, uint32_t section);
const struct rdu_slot_info *ir_slot(const struct rdu_graph *g, uint32_t section, uint32_t slot);
/* Node of `key` (and body for a Loop, taken over), made once: an equal one is returned. */
uint32_t ir_node_add(struct rdu_graph *g, const struct ir_key *key, struct ir_body *body);
uint32_t ir_node_input(struct rdu_graph *g, enum ir_input which);
void ir_key_init(struct ir_key *key, uint32_t kind, uint32_t section, struct ir_shape shape);
/* A Loop over `shape` with `operands`; takes the body over. hint NULL = none. */
uint32_t ir_node_loop(struct rdu_graph *g, struct ir_shape shape, const uint32_t *operand,
                      uint32_t operands, struct ir_body *body, const struct ir_hint *hint);
/* An empty graph of the same name, numerics, slots and tables: what a rewriting pass fills. */
struct rdu_graph *ir_graph_like(const struct rdu_graph *g);

/* ==== operators as bodies, Externals as Loops
 * ================================================== */

/* Body of the operator over `shape`; false if it has none (then b is untouched). */
bool ir_oper_body(const struct ir_hint *hint, const struct ir_shape *shape, struct ir_body *b);
/* Is this Loop exactly this operator (its hint says so and the body agrees, simplified or not)? */
bool ir_loop_is(const struct ir_node *n, enum ir_oper oper);

/* The same value with less work: constants folded, identities applied, invariant ops moved out of
 * reduces, dead ops dropped. Bit-exact. counts NULL = not wanted, else added to. */
void ir_body_simplify(const struct ir_body *b, struct ir_body *ret,
                      struct ir_simplify_counts *counts);
/* If the Loop only copies an operand of its own shape: which operand. */
bool ir_loop_is_copy(const struct ir_node *n, const struct ir_shape *operand_shapes,
                     uint32_t *ret_operand);

/* Loops of a definition read the External's operands as 0..7 and the results of earlier Loops of
 * the definition as IR_OPERANDS + their number. The last Loop is the value (a foreach has none). */
#define IR_DEFINE_LOOPS 8
struct ir_loop {
    struct ir_shape shape;
    struct ir_body body;
};
struct ir_define {
    struct ir_loop loop[IR_DEFINE_LOOPS];
    uint32_t count;
};
/* Variants of a matmul, chosen at run time by the weight's element type. */
enum ir_matmul {
    IR_MATMUL_F32, IR_MATMUL_INT8, IR_MATMUL_INT8_MIN,
    IR_MATMUL_INT8_MIN16, /* Q2_K: a minimum per 16 columns */
    IR_MATMULS,
};
/* 1 for all but int8 matmuls. */
uint32_t ir_define_variants(const struct rdu_graph *g, const struct ir_node *n);
void ir_define(const struct rdu_graph *g, const struct ir_node *n, uint32_t variant,
               struct ir_define *ret);
void ir_define_done(struct ir_define *d);

/* ==== verify, print =========================================================================== */

/* Types, shapes, indices in range, effects in order, one x per section. */
enum err_code ir_verify(const struct rdu_graph *g, struct err *e) BASE_NODISCARD;
/* One body over `shape` whose LOADs see `operand` shapes. `what` names it in the message. */
struct ir_body_scope {
    const struct rdu_graph *graph;
    uint32_t section;
    const struct ir_shape *operand; /* [operands]; elem VOID = not loadable */
    uint32_t operands;
    uint32_t kv_heads, head_dim;    /* 0 = no KV here */
    uint32_t effect;                /* what the Loop may do */
    const char *what;
};
enum err_code ir_verify_body(const struct ir_body *b, const struct ir_shape *shape,
                             const struct ir_body_scope *scope, struct err *e) BASE_NODISCARD;
void ir_body_print(const struct ir_body *b, const char *indent, struct buf *out);
void ir_node_print(const struct rdu_graph *g, uint32_t id, struct buf *out);

/* Arguments an op reads, carried initial values and the count of a REDUCE included; returns how
 * many (at most 5). */
uint32_t ir_op_args(const struct ir_op *op, uint32_t ret[5]);

/* ==== interpretation ========================================================================== */

/* Lower the bodies of all nodes to blocked instruction lists, once, when the program is opened. */
void ir_exec_prepare(struct rdu_graph *g);
void ir_exec_free(struct rdu_graph *g);
/* A scalar op on constants, the same code the interpreter runs; false if it is no arithmetic. */
bool ir_fold(const struct ir_op *op, const int32_t *bits, int32_t *ret_bits, enum ir_type arg_type);

#endif
