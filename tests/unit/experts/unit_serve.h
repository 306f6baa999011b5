/* A store served in-process for tests: one socket, one thread, exact numerics, 32 MiB. */
#ifndef SWITCHYARD_TESTS_UNIT_EXPERTS_UNIT_SERVE_H
#define SWITCHYARD_TESTS_UNIT_EXPERTS_UNIT_SERVE_H

#include "experts/experts.h"

struct unit_server {
    struct memtier *memtier;
    struct rdu_node *node;
    struct experts *experts;
};
enum err_code unit_server_open(struct unit_server *s, struct memtier_store *store, struct err *e);
void unit_server_close(struct unit_server *s);

/* Up to `count` greedy tokens after a plain text, and after one chat turn if the expert has a
 * template. */
enum err_code unit_server_say(struct unit_server *s, struct expert *ex, const char *text,
                              uint32_t count, struct err *e);
/* Feed the golden file's tokens of `model` and compare the best token of each of the first `count`
 * steps; another one counts only where the reference's two best are further apart than 0.002. */
enum err_code unit_server_golden(struct unit_server *s, struct expert *ex, const char *golden_path,
                                 const char *model, size_t count, struct err *e);

#endif
