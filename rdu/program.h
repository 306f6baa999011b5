/* What opt/ hands to node/: a program as lists of launches over planned buffers. Private to rdu/.
 * A launch is one fused cluster = one kernel on every socket; launches of a section run in order with
 * a barrier between them. */
#ifndef SWITCHYARD_RDU_PROGRAM_H
#define SWITCHYARD_RDU_PROGRAM_H

#include <stdatomic.h>

#include "rdu/emit/abi.h"
#include "rdu/rdu.h"

/* Buffer ids. X and LOGITS belong to the arguments, the others to the arena. */
#define RDU_BUF_NONE 0xffffu
#define RDU_BUF_X 0xfffeu
#define RDU_BUF_LOGITS 0xfffdu

enum rdu_buf_kind {
    RDU_BUF_F32, /* [rows, stride] f32, stride = width rounded up to 16 */
    RDU_BUF_Q8,  /* q [rows, width rounded up to 64] int8, then d, then s [rows, blocks rounded up to 16] */
};
struct rdu_buf {
    const char *name;
    enum rdu_buf_kind kind;
    uint32_t width;
    bool per_out;       /* n_outs rows instead of n_tokens */
    size_t row_bytes;   /* of one row of everything, multiple of 64 */
    size_t row_offset;  /* planned by liveness: the buffer starts at row_offset * n_tokens */
};

/* Kernels of clusters. in/out are buffer ids; slots are weight slots of the section's scope. */
enum rdu_kernel {
    RDU_KERNEL_EMBED,       /* tokens, or positions (by_pos) -> out[0]; slot[0] = embedding */
    RDU_KERNEL_NORM,        /* in[0] -> out[0] f32 and, if not NONE, out[1] q8; slot[0], eps, groups */
    RDU_KERNEL_QUANTIZE,    /* in[0] -> out[1] q8 */
    RDU_KERNEL_MATMUL,      /* in[0] f32 (+ in[1] q8) x slot[i] -> out[i], i < slots; with deltas.
                               add: out[0] += result (residual), slots == 1 */
    RDU_KERNEL_GATE_UP,     /* in[0] (+ in[1]) x slot[0], slot[1] -> act -> out[0] f32, out[1] q8;
                               out[2], out[3]: buffers for gate and up */
    RDU_KERNEL_ACT,         /* act(in[0]) * in[1] (ERF: no in[1]) -> out[0] (+ out[1] q8) */
    RDU_KERNEL_ROPE,        /* in place on in[0] */
    RDU_KERNEL_ROPE_APPEND, /* q = in[0] and k = in[1] rotated in place, k and v = in[2] appended */
    RDU_KERNEL_APPEND,      /* k = in[1], v = in[2] appended */
    RDU_KERNEL_ATTENTION,   /* q = in[0] -> out[0] f32 (+ out[1] q8) */
    RDU_KERNEL_ADD,         /* in[0] + in[1] -> out[0] */
    RDU_KERNEL_ADD_BIAS,    /* in[0] + slot[0] -> out[0] */
    RDU_KERNEL_SCALE,       /* in[0] * factor -> out[0] */
    RDU_KERNEL_SOFTCAP,     /* factor * tanh(in[0] / factor) -> out[0] */
    RDU_KERNEL_TAKE_OUTS,   /* rows outs[] of in[0] -> out[0] (per_out) */
    RDU_KERNEL_CENTER,      /* in[0] - mean of the row -> out[0] */
    RDU_KERNEL_MEAN_POOL,   /* mean over a sequence's rows of in[0] -> out[0] (per_out) */
    RDU_KERNEL_HEAD,        /* MATMUL whose out[0] is LOGITS */
    RDU_KERNEL_LOOP,        /* a Loop no leaf matches: interpreted by worker 0 */
    RDU_KERNELS,
};
const char *rdu_kernel_name(enum rdu_kernel k);

enum rdu_act { RDU_ACT_NONE, RDU_ACT_SILU, RDU_ACT_GELU, RDU_ACT_GELU_ERF };

struct rdu_launch {
    enum rdu_kernel kernel;
    const char *name;       /* "attn_qkv": for explain and traces */
    uint32_t in[3], out[4]; /* RDU_BUF_NONE where unused */
    uint32_t slot[3], slots;
    bool add;
    enum rdu_act act;
    float eps, factor;
    uint32_t groups;        /* NORM */
    bool by_pos;            /* EMBED */
    /* ROPE*: heads of in[0], kv_heads of in[1] */
    uint32_t heads, kv_heads, head_dim, rot;
    enum rdu_rope rope;
    const float *cos_table, *sin_table; /* [table_rows, rot / 2] */
    uint32_t table_rows;
    struct rdu_attention_options attention;
    uint32_t node;          /* graph node the cluster ends in (LOOP: the node itself) */
    uint32_t nodes;         /* graph nodes it covers */
};

struct rdu_section_plan {
    struct rdu_launch *launches;
    uint32_t count;
    uint64_t local_bits[4]; /* buffers that every host thread has a copy of in small steps */
};

struct rdu_slot_list {
    struct rdu_slot_info *slots;
    uint32_t count;
};

struct rdu_program {
    struct rdu_graph *graph;
    struct rdu_program_options opt;
    enum rdu_numerics numerics;
    struct rdu_section_plan section[RDU_SECTIONS]; /* empty for interp programs */
    struct rdu_buf *bufs;
    uint32_t bufs_count;
    size_t row_bytes_peak, row_bytes_naive; /* arena bytes per token: planned, and with a buffer per value */
    struct rdu_slot_list layer_slots, global_slots;
    uint32_t width, vocab, kv_heads, head_dim;
    struct buf report;      /* what each pass did, text */
    const float **tables;   /* [graph tables] */
    uint64_t layer_weights; /* elements of a layer's matrices */
    _Atomic(const struct sy_unit *) native; /* NULL = launches are walked */
};

/* The interpreter: run one section over the arguments (layer = index for LAYER, else ignored). Its own
 * scratch is allocated per call: it is the oracle, not a server. Single thread. */
void rdu_interp_section(const struct rdu_program *p, const struct rdu_args *args,
                        enum rdu_section section, uint32_t layer);
/* Run one Loop node on the planned buffers (RDU_KERNEL_LOOP). `arena` is the base of the arena. */
void rdu_interp_launch(const struct rdu_program *p, const struct rdu_launch *l,
                       const struct rdu_args *args, uint32_t layer, char *arena);

/* Address of a buffer's row 0, and its row stride in floats (F32) for `n_tokens` rows. */
static inline char *rdu_buf_base(const struct rdu_program *p, char *arena, uint32_t id,
                                 uint32_t n_tokens)
{
    return arena + p->bufs[id].row_offset * n_tokens;
}
static inline size_t rdu_buf_stride(const struct rdu_buf *b)
{
    return (b->width + 15u) & ~15u;
}

#endif
