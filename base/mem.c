/* Small allocations, the growable buffer and the arena.
 *
 * These abort when the machine has no memory left: they serve small bounded requests, for which no
 * caller has a better answer. Large memory is mapped by its owner, which refuses with a reason. */
#include "base/base.h"

#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

static void __attribute__((noreturn)) out_of_memory(size_t bytes)
{
    (void)fprintf(stderr, "switchyard: out of memory: an allocation of %zu bytes failed\n", bytes);
    abort();
}

void *mem_alloc(size_t bytes)
{
    void *p = calloc(1, bytes != 0 ? bytes : 1);
    if (p == NULL)
        out_of_memory(bytes);
    return p;
}

void *mem_array(size_t count, size_t elem_bytes)
{
    size_t bytes;
    if (!size_mul(count, elem_bytes, &bytes))
        out_of_memory(SIZE_MAX);
    return mem_alloc(bytes);
}

void *mem_grow(void *old, size_t count, size_t elem_bytes)
{
    size_t bytes;
    if (!size_mul(count, elem_bytes, &bytes))
        out_of_memory(SIZE_MAX);
    void *p = realloc(old, bytes != 0 ? bytes : 1);
    if (p == NULL)
        out_of_memory(bytes);
    return p;
}

char *mem_strndup(const char *s, size_t len)
{
    len = strnlen(s, len);
    size_t bytes;
    if (!size_add(len, 1, &bytes))
        out_of_memory(len);
    char *copy = mem_alloc(bytes);
    memcpy(copy, s, len);
    return copy;
}

char *mem_strdup(const char *s)
{
    return mem_strndup(s, strlen(s));
}

char *mem_format(const char *fmt, ...)
{
    char *text;
    va_list args;
    va_start(args, fmt);
    int len = vasprintf(&text, fmt, args);
    va_end(args);
    if (len < 0)
        out_of_memory(strlen(fmt));
    return text;
}

/* ---- buf ---- */

/* Room for `extra` bytes and the terminating NUL. Doubling keeps appends amortised O(1). */
static void buf_reserve(struct buf *b, size_t extra)
{
    size_t need;
    if (!size_add(b->len, extra, &need) || !size_add(need, 1, &need))
        out_of_memory(SIZE_MAX);
    if (need <= b->cap)
        return;
    size_t cap = b->cap != 0 ? b->cap : 64;
    while (cap < need)
        cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    b->data = mem_grow(b->data, cap, 1);
    b->cap = cap;
}

void buf_append(struct buf *b, const void *data, size_t len)
{
    buf_reserve(b, len);
    if (len != 0)
        memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = '\0';
}

void buf_puts(struct buf *b, const char *s)
{
    buf_append(b, s, strlen(s));
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    size_t room = b->cap - b->len;
    int len = vsnprintf(room != 0 ? b->data + b->len : NULL, room, fmt, args);
    va_end(args);
    if (len < 0)
        out_of_memory(strlen(fmt));
    if ((size_t)len >= room) {
        buf_reserve(b, (size_t)len);
        (void)vsnprintf(b->data + b->len, (size_t)len + 1, fmt, again);
    }
    va_end(again);
    b->len += (size_t)len;
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    if (b->data != NULL)
        b->data[0] = '\0';
}

void buf_done(struct buf *b)
{
    free(b->data);
    *b = (struct buf){0};
}

/* ---- arena ---- */

enum { ARENA_ALIGN = 64 };

struct arena_block {
    struct arena_block *next;
    size_t used, cap;
    alignas(ARENA_ALIGN) unsigned char data[];
};

void arena_init(struct arena *a, size_t block_bytes)
{
    a->head = NULL;
    a->block_bytes = block_bytes;
}

static struct arena_block *block_new(size_t cap)
{
    size_t bytes;
    if (!size_add(sizeof(struct arena_block), cap, &bytes) ||
        !size_align(bytes, ARENA_ALIGN, &bytes))
        out_of_memory(SIZE_MAX);
    struct arena_block *block = aligned_alloc(ARENA_ALIGN, bytes);
    if (block == NULL)
        out_of_memory(bytes);
    memset(block, 0, bytes);
    block->cap = cap;
    return block;
}

void *arena_alloc(struct arena *a, size_t bytes)
{
    size_t need;
    if (!size_align(bytes != 0 ? bytes : 1, ARENA_ALIGN, &need))
        out_of_memory(bytes);
    struct arena_block *block = a->head;
    if (block == NULL || block->cap - block->used < need) {
        bool oversized = need > a->block_bytes;
        block = block_new(oversized ? need : a->block_bytes);
        if (oversized && a->head != NULL) {
            /* Behind the head, so that the head's free space stays in use. */
            block->next = a->head->next;
            a->head->next = block;
        } else {
            block->next = a->head;
            a->head = block;
        }
    }
    void *p = block->data + block->used;
    block->used += need;
    return p;
}

char *arena_strndup(struct arena *a, const char *s, size_t len)
{
    len = strnlen(s, len);
    char *copy = arena_alloc(a, len + 1);
    memcpy(copy, s, len);
    return copy;
}

void arena_done(struct arena *a)
{
    for (struct arena_block *block = a->head; block != NULL;) {
        struct arena_block *next = block->next;
        free(block);
        block = next;
    }
    a->head = NULL;
}
