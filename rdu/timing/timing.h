/* Private to rdu/timing and its tests. */
#ifndef SWITCHYARD_RDU_TIMING_H
#define SWITCHYARD_RDU_TIMING_H

#include "rdu/rdu.h"

/* The chip descriptions as they were when the program was built; the last has no name. */
struct timing_chip_text {
    const char *name, *text;
};
extern const struct timing_chip_text timing_chip_texts[];

/* One operator of a layer, over all sockets: what an unfused kernel of it moves and does. */
struct timing_op {
    const char *name;
    double flops, weight_bytes, in_bytes, out_bytes;
    double fused_flops; /* without what masks make needless */
    double kv_read, kv_write; /* bytes of in and out that belong to the KV cache */
    double saved_bytes; /* kept for the backward pass */
    double reduce_bytes; /* value to be summed over the sockets afterwards; 0 = none */
    bool matmul; /* two kernels in the backward pass */
};
enum { TIMING_OPS_MAX = 24 };
#define TIMING_ACT_BYTES 2.0 /* activations and KV are BF16 */
/* Operators of one layer in order; returns how many. */
size_t timing_layer_ops(const struct rdu_shape *s, const struct rdu_pass *p,
                        struct timing_op ret[TIMING_OPS_MAX]);
/* Where a layer is cut: cut[i] = index of the first operator of kernel i; returns the kernels. */
size_t timing_cut(const struct rdu_chip *chip, const struct rdu_pass *p, const struct timing_op *ops,
                  size_t count, size_t cut[TIMING_OPS_MAX]);

#endif
