/* Which block size and depth the device likes best: measured when the loader opens, with the very
 * reads it will use. A shape must win by a margin: two runs of one shape differ by some percent,
 * and a choice that changes from start to start would make every other figure harder to compare. */
#include "memtier/loader.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PART_BYTES ((uint64_t)16 << 20) /* of one timing */
#define ROUNDS 2
#define MARGIN 1.05

static const struct memtier_shape shapes[] = {
    {2u << 20, 16},
    {1u << 20, 32},
    {4u << 20, 8},
    {4u << 20, 16},
};

struct run {
    struct io *io;
    int fd;
    unsigned char *dst;
    struct io_read reads[32];
};

/* Keeps `depth` reads in flight over [from, from + PART_BYTES). False = a read failed. */
static bool read_part(struct run *r, uint64_t from, struct memtier_shape shape)
{
    uint64_t next = 0, done = 0;
    unsigned depth = BASE_MIN(shape.depth, r->io->depth), used = 0;
    struct io_read *idle = NULL;
    while (done < PART_BYTES) {
        while (next < PART_BYTES && (idle != NULL || used < depth)) {
            struct io_read *q = idle != NULL ? idle : &r->reads[used++];
            idle = idle != NULL ? idle->next : NULL;
            *q = (struct io_read){.fd = r->fd,
                                  .slot = -1,
                                  .buffer = -1,
                                  .offset = from + next,
                                  .bytes = shape.block_bytes,
                                  .dst = r->dst + next};
            next += shape.block_bytes;
            r->io->ops->submit(r->io, q);
        }
        for (struct io_read *q = r->io->ops->wait(r->io, 1000000000u), *after; q != NULL;
             q = after) {
            after = q->next;
            done += q->bytes;
            q->next = idle;
            idle = q;
            if (q->result != (int32_t)q->bytes)
                r->fd = -1; /* the others are still waited for */
        }
    }
    return r->fd >= 0;
}

static double measure(struct run *r, uint64_t file_bytes, struct memtier_shape *shape)
{
    uint64_t best[BASE_COUNT(shapes)] = {0}, parts = file_bytes / PART_BYTES, part = 0;
    int fd = r->fd;
    for (int round = 0; round < ROUNDS; round++) {
        for (size_t k = 0; k < BASE_COUNT(shapes); k++) {
            size_t i = round % 2 == 0 ? k : BASE_COUNT(shapes) - 1 - k;
            uint64_t t0 = clock_ns();
            if (!read_part(r, part++ % parts * PART_BYTES, shapes[i]) || r->fd != fd)
                return 0;
            uint64_t ns = BASE_MAX(clock_ns() - t0, (uint64_t)1);
            best[i] = best[i] == 0 ? ns : BASE_MIN(best[i], ns);
        }
    }
    size_t won = 0;
    for (size_t i = 1; i < BASE_COUNT(shapes); i++)
        won = (double)best[i] * MARGIN < (double)best[won] ? i : won;
    *shape =
        (struct memtier_shape){shapes[won].block_bytes, BASE_MIN(shapes[won].depth, r->io->depth)};
    return (double)PART_BYTES * 1e9 / (double)best[won];
}

double load_measure_shape(struct io *io, const char *path, bool direct, struct memtier_shape *shape)
{
    struct stat st;
    double rate = 0;
    struct run r = {.io = io, .fd = open(path, O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0))};
    if (r.fd < 0)
        return 0;
    int fd = r.fd;
    r.dst = mmap(NULL, PART_BYTES, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (r.dst != MAP_FAILED && fstat(fd, &st) == 0 && (uint64_t)st.st_size >= 2 * PART_BYTES)
        rate = measure(&r, (uint64_t)st.st_size, shape);
    if (r.dst != MAP_FAILED)
        (void)munmap(r.dst, PART_BYTES);
    (void)close(fd);
    return rate;
}
