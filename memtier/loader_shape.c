/* Which block size and depth suit the device: measured when the loader opens, with the very reads
 * it will use. Not the fastest is taken but the one with the least in flight that is nearly as
 * fast: all reads in flight share the device, so with 32 MiB of them a model's first layers arrive
 * hardly before its last, and whoever runs while it loads waits for the end. On a virtio disk
 * of 2.6 GB/s the first token came after 1.20 times the load with 16 x 2 MiB, after 1.07 times with
 * 4 x 1 MiB. */
#include "memtier/loader.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PART_BYTES ((uint64_t)16 << 20) /* of one timing */
#define ROUNDS 3
#define NEARLY 0.97
/* At 2.5 GB/s all of it takes 0.14 s. A device that is slow is not made faster by another shape. */
#define SLOW_NS 80000000u
#define PATIENCE_NS 300000000u

/* The least in flight first. */
static const struct memtier_shape shapes[] = {
    {1u << 20, 4}, {1u << 20, 8}, {2u << 20, 4}, {2u << 20, 8}, {2u << 20, 16}, {1u << 20, 32},
};

struct run {
    struct io *io;
    int fd;
    unsigned char *dst;
    int32_t buffer; /* dst is registered as this one; -1 = it is not */
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
                                  .buffer = r->buffer,
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

/* Rates in ns per part; false = nothing is to be learnt here. */
static bool time_shapes(struct run *r, uint64_t file_bytes, uint64_t *best)
{
    uint64_t parts = file_bytes / PART_BYTES, begun = clock_ns();
    for (uint64_t round = 0; round < ROUNDS; round++) {
        uint64_t from = round % parts * PART_BYTES, t0 = clock_ns();
        /* Once for nothing: a cache below us would make the first shape look slow. */
        if (!read_part(r, from, shapes[1]) || clock_ns() - t0 > SLOW_NS)
            return round > 0;
        for (size_t k = 0; k < BASE_COUNT(shapes); k++) {
            size_t i = round % 2 == 0 ? k : BASE_COUNT(shapes) - 1 - k;
            t0 = clock_ns();
            if (!read_part(r, from, shapes[i]))
                return false;
            uint64_t ns = BASE_MAX(clock_ns() - t0, (uint64_t)1);
            best[i] = round == 0 ? ns : BASE_MIN(best[i], ns);
        }
        if (clock_ns() - begun > PATIENCE_NS)
            break;
    }
    return true;
}

static double measure(struct run *r, uint64_t file_bytes, struct memtier_shape *shape)
{
    uint64_t best[BASE_COUNT(shapes)] = {0}, least = UINT64_MAX;
    if (!time_shapes(r, file_bytes, best))
        return 0;
    for (size_t i = 0; i < BASE_COUNT(shapes); i++)
        least = BASE_MIN(least, best[i]);
    size_t won = 0;
    while ((double)best[won] * NEARLY > (double)least)
        won++;
    *shape =
        (struct memtier_shape){shapes[won].block_bytes, BASE_MIN(shapes[won].depth, r->io->depth)};
    return (double)PART_BYTES * 1e9 / (double)best[won];
}

static bool is_registered(struct run *r, bool on)
{
    return r->io->ops->attach_buffer != NULL &&
           r->io->ops->attach_buffer(r->io, 0, on ? r->dst : NULL, on ? PART_BYTES : 0) == 0;
}

double load_measure_shape(struct io *io, const char *path, bool direct, struct memtier_shape *shape)
{
    struct stat st;
    double rate = 0;
    struct run r = {.io = io, .fd = open(path, O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0))};
    if (r.fd < 0)
        return 0;
    int fd = r.fd;
    size_t huge = (size_t)2 << 20;
    unsigned char *raw =
        mmap(NULL, PART_BYTES + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw != MAP_FAILED && fstat(fd, &st) == 0 && (uint64_t)st.st_size >= 2 * PART_BYTES) {
        r.dst = raw + (huge - (uintptr_t)raw % huge) % huge;
        (void)madvise(r.dst, PART_BYTES, MADV_HUGEPAGE); /* as the pool */
        memset(r.dst, 1, PART_BYTES);
        r.buffer = is_registered(&r, true) ? 0 : -1;
        rate = measure(&r, (uint64_t)st.st_size, shape);
        if (r.buffer >= 0)
            (void)is_registered(&r, false);
    }
    if (raw != MAP_FAILED)
        (void)munmap(raw, PART_BYTES + huge);
    (void)close(fd);
    return rate;
}
