/* What the parts of a run (run.c, attend.c) share. Private to rdu/node. */
#ifndef SWITCHYARD_RDU_NODE_RUN_H
#define SWITCHYARD_RDU_NODE_RUN_H

#include "rdu/node/node.h"

/* One worker's view of the run in progress. */
struct run {
    struct node_worker *w;
    const struct rdu_node *n;
    const struct rdu_kernels *k;
    const struct rdu_program *p;
    const struct rdu_args *a;
    uint32_t thread_idx, threads, layer;
    enum rdu_section section; /* native code only, as is the next */
    uint32_t layers_to;       /* layers of this run end before it */
    bool global_slots;        /* EMBED and HEAD use the global slots */
    bool interpreted;         /* the section has a LOOP launch, which reads the shared arena only */
    uint64_t local_bits[4];   /* buffers whose current content is in this worker's own arena */
    struct node_ahead ahead;  /* this worker's weights of the next matmul */
    const struct rdu_launch *ahead_of;
    uint32_t ahead_layer;
};

/* Row 0 of a buffer, where this worker has it. */
float *node_f32_of(const struct run *r, uint32_t id, size_t *ret_stride);
/* A view without data (q == NULL) where the launch has no int8 operand. */
struct rdu_q8 node_q8_of(const struct run *r, uint32_t id);
/* Quantise columns [col, col + n) of row t; col is a multiple of 32. */
void node_quantize_part(const struct run *r, const float *x, uint32_t n, struct rdu_q8 v,
                        uint32_t t, uint32_t col);
/* This worker's part of `rows` rows; all of them when the launch is broadcast. */
void node_share_rows(const struct run *r, uint32_t rows, bool broadcast, uint32_t *ret_from,
                     uint32_t *ret_to);

/* `width` values of `tokens` tokens go to all other sockets, in int8 form if they are quantised. */
void node_count_gather(const struct run *r, uint32_t width, uint32_t tokens, bool q8);

/* Kernels of attend.c. */
void node_run_rope_append(struct run *r, const struct rdu_launch *l);
void node_run_attention(struct run *r, const struct rdu_launch *l);

#endif
