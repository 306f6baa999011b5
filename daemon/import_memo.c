/* The memo: {"<real path>": {"size", "mtime_ns", "inode", "name", "object"}}, object = hash of what
 * the store says of the expert (another import under the same name changes it). */
#include "daemon/import_memo.h"

#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "memtier/memtier.h"

#define MEMO_BYTES_MAX BASE_MIB

static char *memo_path(const struct conf *c)
{
    return mem_format("%s/imports.json", c->store_path);
}

static json_t *memo_read(const struct conf *c)
{
    struct buf text = {0};
    struct err e;
    char *path = memo_path(c);
    json_t *memo = NULL;
    if (file_read(path, MEMO_BYTES_MAX, &text, &e) == ERR_OK)
        memo = json_loadb(text.data != NULL ? text.data : "", text.len, 0, NULL);
    free(path);
    buf_done(&text);
    if (!json_is_object(memo)) {
        json_decref(memo);
        return json_object();
    }
    return memo;
}

/* What identifies the file, without the expert's part; NULL if it is not there. */
static json_t *describe_file(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return NULL;
    int64_t mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    return json_pack("{s:I,s:I,s:I}", "size", (json_int_t)st.st_size, "mtime_ns",
                     (json_int_t)mtime_ns, "inode", (json_int_t)st.st_ino);
}

/* 32 hex digits over the expert's object, "" if there is none. */
static void describe_object(const struct memtier_store *store, const char *name, char out[33])
{
    char *object_name = mem_format("expert/%s", name);
    const struct memtier_object *o = memtier_store_find(store, object_name);
    out[0] = 0;
    if (o != NULL)
        hash128_format(hash128_of(o->meta, o->meta_bytes, o->segments_count), out);
    free(object_name);
}

static bool same_file(const json_t *entry, const json_t *file)
{
    static const char *const keys[] = {"size", "mtime_ns", "inode"};
    for (size_t i = 0; i < BASE_COUNT(keys); i++) {
        const json_t *then = json_object_get(entry, keys[i]);
        if (!json_is_integer(then) || !json_equal(then, json_object_get(file, keys[i])))
            return false;
    }
    return true;
}

static bool same_expert(const struct conf *c, const json_t *entry)
{
    struct memtier_store *store = NULL;
    struct err e;
    char object[33];
    const char *name = json_string_value(json_object_get(entry, "name"));
    const char *then = json_string_value(json_object_get(entry, "object"));
    if (name == NULL || then == NULL ||
        memtier_store_open(c->store_path, MEMTIER_READ, &store, &e) != ERR_OK)
        return false;
    describe_object(store, name, object);
    memtier_store_close(&store);
    return object[0] != 0 && strcmp(object, then) == 0;
}

char *import_memo_find(const struct conf *c, const char *model_path)
{
    char real[PATH_MAX], *name = NULL;
    if (realpath(model_path, real) == NULL)
        return NULL;
    json_t *memo = memo_read(c), *file = describe_file(real);
    const json_t *entry = json_object_get(memo, real);
    if (file != NULL && same_file(entry, file) && same_expert(c, entry))
        name = mem_strdup(json_string_value(json_object_get(entry, "name")));
    json_decref(memo);
    json_decref(file);
    return name;
}

void import_memo_note(const struct conf *c, const char *model_path, const char *name)
{
    struct memtier_store *store = NULL;
    struct err e;
    char real[PATH_MAX], object[33];
    if (realpath(model_path, real) == NULL ||
        memtier_store_open(c->store_path, MEMTIER_READ, &store, &e) != ERR_OK)
        return;
    describe_object(store, name, object);
    memtier_store_close(&store);
    json_t *memo = memo_read(c), *entry = describe_file(real);
    json_object_set_new(entry, "name", json_string(name));
    json_object_set_new(entry, "object", json_string(object));
    json_object_set_new(memo, real, entry);
    char *text = json_dumps(memo, JSON_INDENT(1)), *path = memo_path(c);
    if (text != NULL && file_write_atomic(path, text, strlen(text), &e) != ERR_OK)
        e.code = ERR_OK; /* the next start reads the model once more */
    free(text);
    free(path);
    json_decref(memo);
}
