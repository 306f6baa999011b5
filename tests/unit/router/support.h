/* What the router's tests share: cmocka, a made-up data set, a small head, shared data. */
#ifndef TEST_ROUTER_SUPPORT_H
#define TEST_ROUTER_SUPPORT_H

#include "router/router.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* `rows` rows of three experts and `general`, four wordings each, made from lists of words. */
struct router_data support_data(size_t rows, uint64_t seed);
void support_add(struct router_data *d, const char *text, const char *expert, const char *source);

/* Train on 400 such rows; fails the test if that fails. */
struct buf support_train(const struct router_train_options *opt);
struct router_head *support_head(void);

/* A decision about a single text; `opt` may be NULL. */
struct router_decision support_decide(const struct router_head *h, const char *text, size_t len,
                                      const struct router_options *opt);
int support_label(const struct router_head *h, const char *name);

/* Path below the shared data, or NULL if it is not there (the caller frees and skips). */
char *support_shared(const char *relative);
char *support_source(const char *relative); /* below the source tree */

#endif
