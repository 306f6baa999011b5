/* What the memtier tests share: temporary stores with data that is a function of a seed. */
#ifndef SWITCHYARD_TEST_MEMTIER_SUPPORT_H
#define SWITCHYARD_TEST_MEMTIER_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

#include <cmocka.h>

#include "memtier/memtier.h"

/* One segment of a test: its bytes follow from the seed, its hash from its bytes. */
struct sample {
    uint64_t seed;
    size_t bytes;
    struct hash128 hash;
};

/* A fresh directory under TMPDIR (or `parent`); remove with all it contains. */
char *test_dir_new(const char *parent);
void test_dir_remove(char **dir);
char *test_path(const char *dir, const char *name); /* "dir/name", caller frees */
/* The name of the n-th file in dir/data in name order; caller frees; NULL = fewer. */
char *test_data_file(const char *dir, size_t n);
size_t test_data_files(const char *dir);

void sample_fill(const struct sample *s, void *dst);
void sample_init(struct sample *s, uint64_t seed, size_t bytes);
bool sample_matches(const struct sample *s, const void *data);
/* Write an object of these segments, description "meta of <name>"; fails the test on error. */
void sample_write(struct memtier_store *store, const char *name, const struct sample *s,
                  size_t count);

/* memtier_store_open that must succeed. */
struct memtier_store *store_must_open(const char *dir, enum memtier_access access);
struct memtier *tiers_must_open(const struct memtier_options *opt, struct memtier_store *store);
/* Poll until the lease is complete or failed (true / false); fails the test after a minute. */
bool lease_wait(struct memtier *m, struct memtier_lease *l);
/* Poll until the loader has answered everything. */
void tiers_settle(struct memtier *m);
/* Reserve, wait, compare every segment with its sample, release. */
void tiers_check(struct memtier *m, const struct sample *s, size_t count, uint64_t now_ns);

/* Run `fn` in a child; its exit status (0 = fine), or 128 + signal. cmocka asserts do not work
 * there: return non-zero instead. */
int in_child(int (*fn)(void *arg), void *arg);

#endif
