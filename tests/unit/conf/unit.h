/* What the cmocka programs of this room share. */
#ifndef SWITCHYARD_TESTS_UNIT_CONF_UNIT_H
#define SWITCHYARD_TESTS_UNIT_CONF_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "conf/conf.h"

/* A directory for files of one program; made by unit_setup, removed by unit_teardown. */
static char unit_root[64];

static inline int unit_setup(void **state)
{
    (void)snprintf(unit_root, sizeof(unit_root), "/tmp/switchyard-conf-XXXXXX");
    return mkdtemp(unit_root) == NULL;
}

static inline int unit_teardown(void **state)
{
    char command[100];
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", unit_root);
    return system(command);
}

/* Write `text` to a file and load it over `c`. */
static inline enum err_code unit_load(struct conf *c, const char *text, size_t len, struct err *e)
{
    char path[100];
    (void)snprintf(path, sizeof(path), "%s/c.yaml", unit_root);
    assert_int_equal(file_write_atomic(path, text, len, NULL), ERR_OK);
    return conf_load_file(c, path, e);
}

static inline void unit_must_load(struct conf *c, const char *text)
{
    struct err e;
    if (unit_load(c, text, strlen(text), &e) != ERR_OK)
        fail_msg("%s", e.msg);
}

/* The configuration as text, to compare whole. Caller frees with buf_done. */
static inline struct buf unit_text(const struct conf *c, bool json)
{
    struct buf out = {0};
    conf_format(c, json, &out);
    return out;
}

#endif
