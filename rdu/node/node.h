/* The node's inside: worker threads that play the sockets, their barrier, scratch. Private to rdu/.
 */
#ifndef SWITCHYARD_RDU_NODE_H
#define SWITCHYARD_RDU_NODE_H

#include <stdatomic.h>

#include "rdu/kernels/kernels.h"
#include "rdu/program.h"

#define NODE_SOCKETS_MAX 16

/* A counter that threads wait on: spin briefly, then sleep in the kernel (queue.c). */
struct node_gate {
    _Atomic uint32_t value;
    _Atomic uint32_t sleepers;
};
void node_gate_publish(struct node_gate *g, uint32_t value);
/* What a worker will read next: up to three spans of memory, taken into its cache while it has to
 * wait for the others (weights of a decode step come from memory, and waiting leaves memory idle).
 */
#define NODE_AHEAD_SPANS 3
struct node_ahead {
    const char *at[NODE_AHEAD_SPANS], *end[NODE_AHEAD_SPANS];
    uint32_t span; /* the one in progress */
};
void node_ahead_fetch(struct node_ahead *a, uint32_t lines);

/* Returns once g->value != old; fetches ahead meanwhile (NULL: nothing). */
void node_gate_wait(struct node_gate *g, uint32_t old, struct node_ahead *a);

struct node_barrier {
    _Atomic uint32_t arrived;
    struct node_gate phase;
    uint32_t threads;
};
void node_barrier_wait(struct node_barrier *b, struct node_ahead *a);

/* Memory of one host thread: copies of buffers that every socket computes for itself (the broadcast
 * input of a small step), and the temporaries of adapter deltas and attention. */
struct node_worker {
    struct rdu_node *node;
    uint32_t thread_idx;
    pthread_t thread;
    char *local_arena; /* laid out as the shared arena, for at most NODE_LOCAL_TOKENS rows */
    float *delta_u;    /* [NODE_TILE, NODE_RANK_MAX] */
    float *delta_v;    /* [NODE_TILE, tile_rows] */
    float *delta_y;    /* [NODE_TILE, tile_rows] */
    /* Since the node was opened: weights this thread's sockets read, once per launch, and values of
     * theirs that the others need whole. By socket when there is a thread for each. */
    uint64_t weight_bytes, gather_bytes;
    float *attn_state; /* for each token of a tile m, l [heads], o [heads, head_dim] */
};
#define NODE_TILE 16
#define NODE_ATTN_TILE 8
#define NODE_LOCAL_TOKENS 4
#define NODE_RANK_MAX 4096 /* what an import accepts at most (experts/set_plan.c) */

struct rdu_node {
    struct rdu_node_options opt;
    struct rdu_kernels kernels;
    struct node_worker worker[NODE_SOCKETS_MAX];
    struct node_barrier barrier;
    struct node_gate job; /* bumped for each run; UINT32_MAX - reserved for none */
    atomic_bool stop;
    uint32_t started; /* worker threads that run; the caller is none of them */

    /* The run in progress: written by the caller before `job` is bumped, read by all until the end.
     */
    const struct rdu_program *program;
    const struct rdu_args *args;
    uint32_t stage_from, stage_to;
    const struct sy_unit *unit; /* compiled form of the program, NULL = walk its launches */
    bool solo; /* worker 0 runs it alone: dividing it would cost more than it saves */

    char *arena; /* shared scratch; caller thread grows it between runs */
    size_t arena_bytes, local_bytes;
    uint32_t tile_rows, attn_floats;

    struct rdu_node_stats stats; /* caller thread */
};

/* Everything one worker does for the run in progress (run.c). */
void node_work(struct node_worker *w);

#endif
