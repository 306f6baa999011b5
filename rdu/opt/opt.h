/* The passes between a graph and a program: each takes what the one before made and says what it did.
 * Private to rdu/. */
#ifndef SWITCHYARD_RDU_OPT_H
#define SWITCHYARD_RDU_OPT_H

#include "rdu/ir/ir.h"

struct opt_counts {
    uint32_t nodes_before, nodes_after;
    uint32_t ops_before, ops_after; /* scalar operations in loop bodies */
    uint32_t copies;                /* loops that only copied */
    struct ir_simplify_counts body;
};
/* A new graph of the same meaning, bit for bit: what is not needed dropped, equal nodes one node, bodies
 * simplified. */
struct rdu_graph *opt_simplify(const struct rdu_graph *g, struct opt_counts *ret);

/* A launch before buffers are planned: in[], out[] hold node ids of values (an int8 value is named by its
 * node of integers), IR_NONE where unused. */
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
/* Map the nodes of a section to leaf kernels and order them. `report` gets one line per decision. */
enum err_code opt_fuse(const struct rdu_graph *g, uint32_t section, bool fused, struct opt_section *ret,
                       struct buf *report, struct err *e) BASE_NODISCARD;

/* Buffers for the values of a section's clusters: storage shared where a kernel works in place, x and the
 * logits written in place where that is legal; appends to p->bufs and fills p->section[section]. */
void opt_buffers(struct rdu_program *p, uint32_t section, const struct opt_section *clusters);
/* Offsets of the section's buffers [from, p->bufs_count) by liveness. */
void opt_place(struct rdu_program *p, uint32_t section, uint32_t from);

/* Work of one launch for a step: bytes of weights, of activations read and written, and operations. */
struct opt_work {
    uint64_t weight_elems; /* elements, as the type is known at run time only */
    uint64_t act_bytes;    /* per token (or wanted output), weights apart */
    uint64_t flops;        /* per token; attention: per token and position of context */
    bool per_ctx;          /* flops and KV traffic grow with the context */
};
struct opt_work opt_launch_work(const struct rdu_program *p, uint32_t section,
                                const struct rdu_launch *l);

#endif
