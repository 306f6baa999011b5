/* The passes between a graph and a program: each takes what the one before made and says what it
 * did. Private to rdu/. */
#ifndef SWITCHYARD_RDU_OPT_H
#define SWITCHYARD_RDU_OPT_H

#include "rdu/ir/ir.h"

/* A new graph of the same meaning, bit for bit: what is not needed dropped, equal nodes one node,
 * bodies simplified. */
struct rdu_graph *opt_simplify(const struct rdu_graph *g); /* says what it did in ->counts */

/* The value that holds the wanted rows of x, made as early as that is legal; take_key is the key of
 * the take_outs node it stands for. */
uint32_t opt_at_outs(struct rdu_graph *g, uint32_t x, const struct ir_key *take_key);

/* A launch before buffers are planned: in[], out[] hold node ids of values (an int8 value is named
 * by its node of integers), IR_NONE where unused. */
struct opt_cluster {
    struct rdu_launch l;
    uint32_t first;    /* smallest node id: the order among those that are ready */
    uint32_t after;    /* node of a KV append that must have run; IR_NONE */
    uint32_t residual; /* MATMUL with add: the value it is added to; IR_NONE */
    uint32_t product;  /* and the matmul's own value, for when they must be split again */
};
struct opt_section {
    struct opt_cluster *clusters; /* in the order they run */
    uint32_t count, cap;
};
/* What fusing is expected to save over one launch per operator, per token (or wanted output). */
struct opt_saved {
    uint64_t bytes;
    uint32_t launches;
};
/* Map the nodes of a section to leaf kernels and order them. `report` gets one line per decision.
 */
enum err_code opt_fuse(const struct rdu_graph *g, uint32_t section, bool fused,
                       struct opt_section *ret, struct opt_saved *ret_saved, struct buf *report,
                       struct err *e) BASE_NODISCARD;

/* Buffers for the values of a section's clusters: storage shared where a kernel works in place, x
 * and the logits written in place where that is legal; appends to p->bufs and fills
 * p->section[section]. */
void opt_buffers(struct rdu_program *p, uint32_t section, const struct opt_section *clusters);
/* Offsets of the section's buffers [from, p->bufs_count) by liveness. */
void opt_place(struct rdu_program *p, uint32_t section, uint32_t from);

/* ---- partition (partition.c) ----------------------------------------------------------------- */

/* Weight rows [from, to) of one socket: whole groups, or whole blocks of 32 for the gated MLP, whose
 * rows are quantised by the socket that made them. */
void opt_share(const struct rdu_launch *l, uint32_t rows, uint32_t sockets, uint32_t socket,
               uint32_t *ret_from, uint32_t *ret_to);
/* What a whole step moves: weights that each socket reads, once per launch, and bytes of values that
 * one socket makes and all others need (products, attention), each counted once. */
struct opt_traffic {
    uint64_t weight_bytes[16], gather_bytes;
};
void opt_traffic_of(const struct rdu_program *p, const struct rdu_args *args, uint32_t sockets,
                    struct opt_traffic *ret);

/* ---- cost (cost.c) --------------------------------------------------------------------------- */

/* A value as a launch reads or writes it: elements per row, and whether in int8 form. */
struct opt_value {
    uint32_t width; /* 0 = none */
    bool q8;
};
uint64_t opt_value_bytes(struct opt_value v);                              /* per row */
struct opt_value opt_node_value(const struct rdu_graph *g, uint32_t node); /* IR_NONE: none */

/* Work of one launch per token (or wanted output). Weights are counted in elements: their type
 * comes with the arguments. */
struct opt_work {
    uint64_t weight_elems; /* read once per step */
    uint64_t
        act_bytes;     /* activations read and written; values that stay in cache are not counted */
    uint64_t kv_elems; /* appended */
    uint64_t kv_elems_ctx; /* read for each position of context */
    uint64_t flops;
    uint64_t flops_ctx; /* for each position of context */
};
struct opt_work opt_work_of(const struct rdu_launch *l, const struct opt_value in[3],
                            const struct opt_value out[4]);
/* The same for a planned launch and for a cluster. */
struct opt_work opt_launch_work(const struct rdu_program *p, const struct rdu_launch *l);
struct opt_work opt_cluster_work(const struct rdu_graph *g, const struct opt_cluster *c);

#endif
