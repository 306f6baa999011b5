/* A store, tiers, node and experts around one model file, opened as a test wants them, and the golden files.
 * Data is found through SWITCHYARD_SHARED (fixtures) or the tree's own tests/data; the real model through
 * SWITCHYARD_MODEL. */
#ifndef SWITCHYARD_TESTS_RIG_H
#define SWITCHYARD_TESTS_RIG_H

#include <jansson.h>

#include "daemon/stack.h"

struct rig_options {
    const char *model;              /* path */
    const char *adapters[4];        /* paths, stacked: each over the one before */
    double scales[4];
    const char *exec, *numerics, *kv, *cpu; /* NULL = default */
    uint32_t sockets, threads;      /* 0 = 8, 1 */
    const char *hbm;                /* NULL = automatic */
};
struct rig {
    struct conf conf;
    struct stack stack;
    struct expert *expert;          /* the topmost adapter, or the model */
    char dir[64];
};
/* Fails the test with the message if it cannot. */
void rig_open(struct rig *r, const struct rig_options *o);
void rig_close(struct rig *r);

/* Path of a fixture ("golden/smollm2.jsonl"), or NULL with a printed reason if it is nowhere. */
char *rig_fixture(const char *name);
/* All lines of a JSONL fixture as an array; NULL if missing. */
json_t *rig_jsonl(const char *name);

/* Token ids of a JSON array appended to ids; returns how many. */
size_t rig_ids(json_t *array, int32_t *ids, size_t cap);

/* Logits of every position [count, vocab]; caller frees. */
float *rig_logits(struct rig *r, const int32_t *ids, size_t count, uint32_t chunk);
size_t rig_vocab(const struct rig *r);

double logsumexp(const float *x, size_t n);
size_t argmax(const float *x, size_t n);

#endif
