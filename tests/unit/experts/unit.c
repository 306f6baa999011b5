/* See unit.h. */
#include "tests/unit/experts/unit.h"

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "experts/gguf.h"

#define DATA_ALIGN 32

uint64_t unit_seed(void)
{
    const char *text = getenv("SWITCHYARD_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 10) : clock_wall_ms();
    print_message("seed %llu (repeat with SWITCHYARD_SEED)\n", (unsigned long long)seed);
    return seed;
}

char *unit_data(const char *name)
{
    const char *source = getenv("SWITCHYARD_SOURCE");
    char *path = mem_format("%s/tests/data/%s", source ? source : ".", name);
    if (access(path, R_OK) != 0)
        fail_msg("%s is missing", path);
    return path;
}

char *unit_shared(const char *name)
{
    const char *shared = getenv("SWITCHYARD_SHARED");
    char *path = mem_format("%s/%s", shared ? shared : "../shared", name);
    if (access(path, R_OK) == 0)
        return path;
    print_message("%s is not here (SWITCHYARD_SHARED): skipped\n", path);
    free(path);
    return NULL;
}

char *unit_dir_open(void)
{
    const char *tmp = getenv("TMPDIR");
    char *dir = mem_format("%s/switchyard-test-XXXXXX", tmp && tmp[0] ? tmp : "/tmp");
    assert_non_null(mkdtemp(dir));
    return dir;
}

static int remove_entry(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    return remove(path);
}

void unit_dir_close(char **dir)
{
    if (*dir)
        nftw(*dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(*dir);
    *dir = NULL;
}

char *unit_path(const char *dir, const char *name)
{
    return mem_format("%s/%s", dir, name);
}

bool unit_files_equal(const char *a, const char *b)
{
    struct buf x = {0}, y = {0};
    struct err e;
    unit_ok(file_read(a, BASE_GIB, &x, &e), &e);
    unit_ok(file_read(b, BASE_GIB, &y, &e), &e);
    bool same = x.len == y.len && memcmp(x.data, y.data, x.len) == 0;
    if (!same)
        print_message("%s (%zu bytes) and %s (%zu bytes) differ\n", a, x.len, b, y.len);
    buf_done(&x);
    buf_done(&y);
    return same;
}

void unit_write(const char *path, const void *data, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    assert_true(len == 0 || write(fd, data, len) == (ssize_t)len);
    close(fd);
}

void unit_expect(enum err_code rc, enum err_code wanted, const struct err *e, const char *file,
                 int line)
{
    if (rc == wanted)
        return;
    print_message("%s:%d: %s instead of %s: %s\n", file, line, err_code_name(rc),
                  err_code_name(wanted), rc != ERR_OK && e ? e->msg : "");
    _fail(file, line);
}

void unit_message(const struct err *e, const char *text, const char *file, int line)
{
    if (strstr(e->msg, text))
        return;
    print_message("%s:%d: the message does not say '%s': %s\n", file, line, text, e->msg);
    _fail(file, line);
}

struct memtier_store *unit_store(const char *dir, enum memtier_access access)
{
    struct memtier_store *s = NULL;
    struct err e;
    unit_ok(memtier_store_open(dir, access, &s, &e), &e);
    return s;
}

enum err_code unit_add(struct memtier_store *s, const char *path, const char *name,
                       const char *base, struct expert_add_report *ret, struct err *e)
{
    struct expert_add_options opt = {.path = path, .name = name, .base = base};
    return experts_add(s, &opt, NULL, ret, e);
}

/* ---- making files ---- */

static void put_u32(struct buf *b, uint32_t v)
{
    buf_append(b, &v, sizeof(v));
}

static void put_u64(struct buf *b, uint64_t v)
{
    buf_append(b, &v, sizeof(v));
}

static void put_str(struct buf *b, const char *s)
{
    put_u64(b, strlen(s));
    buf_append(b, s, strlen(s));
}

void made_kv(struct made *m, const char *key, uint32_t type, const void *value, size_t len)
{
    put_str(&m->keys, key);
    put_u32(&m->keys, type);
    buf_append(&m->keys, value, len);
    m->keys_count++;
}

void made_u32(struct made *m, const char *key, uint32_t v)
{
    made_kv(m, key, GGUF_U32, &v, sizeof(v));
}

void made_f32(struct made *m, const char *key, float v)
{
    made_kv(m, key, GGUF_F32, &v, sizeof(v));
}

void made_str(struct made *m, const char *key, const char *v)
{
    struct buf b = {0};
    put_str(&b, v);
    made_kv(m, key, GGUF_STR, b.data, b.len);
    buf_done(&b);
}

void made_strs(struct made *m, const char *key, const char *const *v, size_t count)
{
    struct buf b = {0};
    put_u32(&b, GGUF_STR);
    put_u64(&b, count);
    for (size_t i = 0; i < count; i++)
        put_str(&b, v[i]);
    made_kv(m, key, GGUF_ARRAY, b.data, b.len);
    buf_done(&b);
}

void made_tensor(struct made *m, const char *name, uint32_t dims, const uint64_t *dim,
                 uint32_t type, uint64_t offset)
{
    put_str(&m->tensors, name);
    put_u32(&m->tensors, dims);
    for (uint32_t i = 0; i < dims; i++)
        put_u64(&m->tensors, dim[i]);
    put_u32(&m->tensors, type);
    put_u64(&m->tensors, offset);
    m->tensors_count++;
}

static void pad(struct buf *b)
{
    static const char zeros[DATA_ALIGN];
    buf_append(b, zeros, (DATA_ALIGN - b->len % DATA_ALIGN) % DATA_ALIGN);
}

void made_data(struct made *m, const char *name, uint64_t cols, uint64_t rows, uint32_t type,
               const void *data, size_t len)
{
    const uint64_t dim[2] = {cols, rows};
    made_tensor(m, name, rows ? 2 : 1, dim, type, m->data.len);
    buf_append(&m->data, data, len);
    pad(&m->data);
}

void made_header(const struct made *m, struct buf *out)
{
    buf_append(out, "GGUF", 4);
    put_u32(out, m->version ? m->version : 3);
    put_u64(out, m->tensors_count);
    put_u64(out, m->keys_count);
    buf_append(out, m->keys.len ? m->keys.data : "", m->keys.len);
    buf_append(out, m->tensors.len ? m->tensors.data : "", m->tensors.len);
}

void made_write(const struct made *m, const char *path)
{
    struct buf b = {0};
    made_header(m, &b);
    pad(&b);
    buf_append(&b, m->data.len ? m->data.data : "", m->data.len);
    unit_write(path, b.data, b.len);
    buf_done(&b);
}

void made_done(struct made *m)
{
    buf_done(&m->keys);
    buf_done(&m->tensors);
    buf_done(&m->data);
}

static bool skipped(const char *name, size_t len, const char *const *skip)
{
    for (size_t i = 0; skip && skip[i]; i++)
        if (strlen(skip[i]) <= len && memcmp(name, skip[i], strlen(skip[i])) == 0)
            return true;
    return false;
}

void made_copy(struct made *m, const struct gguf *g, const char *const *skip)
{
    struct err e;
    for (size_t i = 0; i < g->kv_count; i++) {
        if (skipped(g->kv[i].key, g->kv[i].key_len, skip))
            continue;
        gguf_put_kv(&m->keys, &g->kv[i]);
        m->keys_count++;
    }
    for (size_t i = 0; i < gguf_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        if (skipped(t->name, strlen(t->name), skip))
            continue;
        void *data = mem_alloc((size_t)t->bytes);
        unit_ok(gguf_read_tensor(g, t, data, &e), &e);
        made_data(m, t->name, t->dim[0], t->dims > 1 ? t->dim[1] : 0,
                  (uint32_t)rdu_type_info(t->type)->gguf_id, data, (size_t)t->bytes);
        free(data);
    }
}
