/* What the cmocka programs of this room share: headers in the order cmocka.h demands, files of the
 * test data, temporary folders, stores, and a builder of GGUF files that may be as wrong as a test
 * wants. */
#ifndef SWITCHYARD_TESTS_UNIT_EXPERTS_UNIT_H
#define SWITCHYARD_TESTS_UNIT_EXPERTS_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "experts/experts.h"

/* SWITCHYARD_SEED, or one from the clock; printed so that a failure can be repeated. */
uint64_t unit_seed(void);

/* "<source>/tests/data/<name>"; fails the test if it is missing. Caller frees. */
char *unit_data(const char *name);
/* "<shared>/<name>", or NULL with a printed reason. Caller frees. */
char *unit_shared(const char *name);

/* A new empty folder; remove it with everything inside when done. */
char *unit_dir_open(void);
void unit_dir_close(char **dir);
char *unit_path(const char *dir, const char *name);
bool unit_files_equal(const char *a, const char *b);
void unit_write(const char *path, const void *data, size_t len);

/* Fail the test with the message when rc is not what is wanted. */
#define unit_ok(rc, e) unit_expect(rc, ERR_OK, e, __FILE__, __LINE__)
#define unit_code(rc, code, e) unit_expect(rc, code, e, __FILE__, __LINE__)
void unit_expect(enum err_code rc, enum err_code wanted, const struct err *e, const char *file,
                 int line);
/* The message of a failure must name what is wrong. */
#define unit_says(e, text) unit_message(e, text, __FILE__, __LINE__)
void unit_message(const struct err *e, const char *text, const char *file, int line);

struct memtier_store *unit_store(const char *dir, enum memtier_access access);
/* experts_add with the fewest options. */
enum err_code unit_add(struct memtier_store *s, const char *path, const char *name,
                       const char *base, struct expert_add_report *ret, struct err *e);

/* ---- making files ---- */

struct made {
    struct buf keys, tensors, data;
    uint64_t keys_count, tensors_count;
    uint32_t version; /* 0 = 3 */
};
void made_kv(struct made *m, const char *key, uint32_t type, const void *value, size_t len);
void made_u32(struct made *m, const char *key, uint32_t v);
void made_f32(struct made *m, const char *key, float v);
void made_str(struct made *m, const char *key, const char *v);
void made_strs(struct made *m, const char *key, const char *const *v, size_t count);
void made_tensor(struct made *m, const char *name, uint32_t dims, const uint64_t *dim,
                 uint32_t type, uint64_t offset);
/* A 2-D (rows > 0) or 1-D tensor whose bytes are appended to the data section. */
void made_data(struct made *m, const char *name, uint64_t cols, uint64_t rows, uint32_t type,
               const void *data, size_t len);
/* Header only, then with padding and data. */
void made_header(const struct made *m, struct buf *out);
void made_write(const struct made *m, const char *path);
void made_done(struct made *m);
/* All keys of a file but those that `skip` names (NULL-terminated list of prefixes), and then all
 * its tensors with their bytes but those it names. */
void made_copy(struct made *m, const struct gguf *g, const char *const *skip);

#endif
