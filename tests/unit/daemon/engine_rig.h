/* A real engine over the tiny models of the tree, and requests to it. */
#ifndef SWITCHYARD_TESTS_UNIT_DAEMON_ENGINE_RIG_H
#define SWITCHYARD_TESTS_UNIT_DAEMON_ENGINE_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/engine.h"

/* Loads stop while the first is set, and fail with the second. */
extern atomic_bool loads_stop;
extern atomic_int loads_fail;
void nap(void);
void nap_for(int ms);

struct rig {
    char dir[64];
    struct memtier_store *store;
    struct memtier *memtier;
    struct rdu_node *node;
    struct experts *experts;
    struct engine *engine;
    uint64_t budget;
};

struct rig_options {
    uint64_t hbm, ddr, spill;
    uint32_t sequences, queue, defer_ms, draft;
    const char *generalist;
};

void must(enum err_code code, const struct err *e);
/* llama and qwen are two bases of about a half MiB; upper and psalms adapters over llama. */
void rig_open(struct rig *r, const struct rig_options *o);
void rig_close(struct rig *r); /* checks that nothing was left behind */
struct expert *expert(struct rig *r, const char *name);
/* What `model` and so many tokens of KV take, learned from a server with room. */
uint64_t footprint(const char *model, size_t tokens);

/* Greedy, without end tokens; the prompt counts up from 40 by 7. */
struct request *ask(struct rig *r, const char *model, uint32_t prompt, uint32_t max_tokens);
enum err_code submit(struct rig *r, struct request *q, struct err *e);
struct request *run(struct rig *r, struct request *q);
struct request *start(struct rig *r, const char *model, uint32_t prompt, uint32_t max_tokens);
void wait_state(struct request *q, enum request_state state);
void wait_tokens(struct request *q, uint32_t events);
enum request_finish finish_of(const struct request *q, uint32_t choice);
/* Waits for the end, checks it, gives the request back. */
void ends(struct request *q, enum request_finish finish);

#endif
