/* Orders: what an operator, a benchmark or the configuration wants done with an expert's memory.
 * The engine's thread owns the tiers, so it carries them out, between steps. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_ENGINE_ORDER_H
#define SWITCHYARD_DAEMON_ENGINE_ORDER_H

#include "daemon/engine.h"

enum engine_order_kind {
    ENGINE_ORDER_LOAD,     /* bring all of it into hbm */
    ENGINE_ORDER_UNLOAD,   /* take what is its own out of hbm: to ddr if there is one, or to nvme */
    ENGINE_ORDER_HOLD,     /* load, and never evict */
    ENGINE_ORDER_UNHOLD,   /* may be evicted again */
    ENGINE_ORDER_PREFETCH, /* begin to load into free room, and do not wait */
    ENGINE_ORDER_BUDGET,   /* change tiers.hbm to `hbm_bytes` */
    ENGINE_ORDER_LOOK,     /* note where every expert is, for engine_places */
};

struct engine_order {
    enum engine_order_kind kind;
    struct expert *expert; /* not of BUDGET and LOOK */
    uint64_t hbm_bytes;    /* BUDGET */
    bool to_nvme;          /* UNLOAD: not into ddr */
    uint64_t patience_ns;  /* LOAD, HOLD: how long to wait for room; 0 = refuse at once */
    /* Called once on the engine's thread, or on the submitter's when the engine is closing; the
     * order is the caller's again from then on. */
    void (*done)(struct engine_order *o);
    void *ctx;

    /* The answer: */
    struct err error; /* code ERR_OK = done */
    enum memtier_tier
        tier;       /* LOAD, HOLD, PREFETCH: the farthest it came from; UNLOAD: where it is now */
    uint64_t bytes; /* loaded, begun or evicted */
    uint64_t ns;    /* from the order's start to its end */

    /* The engine's: */
    struct engine_order *next;
    struct memtier_lease *lease;
    uint64_t start_ns;
    bool held;
};

/* Any thread but the engine's. */
void engine_order_submit(struct engine *g, struct engine_order *o);
/* Submits and waits for the end; `done` and `ctx` are its own. */
enum err_code engine_order_run(struct engine *g, struct engine_order *o,
                               struct err *e) BASE_NODISCARD;
/* Where the experts' own segments were a moment ago, or at the last ENGINE_ORDER_LOOK: bytes in
 * each tier of MEMTIER_HBM, MEMTIER_DDR, MEMTIER_NVME, and whether it is held. */
struct engine_place {
    uint64_t bytes[MEMTIER_NVME + 1];
    bool held;
};
void engine_places(struct engine *g, struct engine_place *ret,
                   size_t count); /* [experts]; any thread */

#endif
