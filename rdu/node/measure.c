/* The limits of this machine, measured with as many threads as the node has. */
#include <string.h>
#include <sys/mman.h>

#include "rdu/node/node.h"

#define ROUNDS 5 /* the best counts */

struct job {
    const struct rdu_kernels *kernels;
    const uint64_t *data;
    size_t words;
    uint64_t sum;
    uint32_t rounds;
    double ops;
    float sink;
};

/* Seconds that `threads` threads take for their jobs together; fewer threads if one cannot start.
 */
static double run_jobs(struct job *job, uint32_t threads, void *(*work)(void *arg))
{
    pthread_t thread[NODE_SOCKETS_MAX];
    uint64_t start = clock_ns();
    for (uint32_t i = 1; i < threads; i++)
        if (thread_start(&thread[i], "measure", work, &job[i], NULL) != ERR_OK)
            threads = i;
    work(&job[0]);
    for (uint32_t i = 1; i < threads; i++)
        thread_join(thread[i]);
    return (double)(clock_ns() - start) * 1e-9;
}

static void *read_main(void *arg)
{
    struct job *j = arg;
    uint64_t s[8] = {0};
    for (size_t i = 0; i + 8 <= j->words; i += 8)
        for (int k = 0; k < 8; k++)
            s[k] += j->data[i + (size_t)k];
    for (int k = 0; k < 8; k++)
        j->sum += s[k];
    return NULL;
}

double rdu_node_measure_read(struct rdu_node *n, size_t bytes)
{
    uint32_t threads = n->opt.threads;
    bytes &= ~(size_t)4095;
    uint64_t *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return 0;
    madvise(data, bytes, MADV_HUGEPAGE);
    memset(data, 1, bytes);
    double best = 0;
    for (int round = 0; round < ROUNDS; round++) {
        struct job job[NODE_SOCKETS_MAX] = {0};
        for (uint32_t i = 0; i < threads; i++) {
            job[i].data = data + bytes / 8 / threads * i;
            job[i].words = bytes / 8 / threads;
        }
        best = BASE_MAX(best, (double)bytes / run_jobs(job, threads, read_main));
    }
    munmap(data, bytes);
    return best;
}

static void *int8_main(void *arg)
{
    struct job *j = arg;
    j->ops = j->kernels->peak_int8(j->rounds, &j->sink);
    return NULL;
}

static void *f32_main(void *arg)
{
    struct job *j = arg;
    j->ops = j->kernels->peak_f32(j->rounds, &j->sink);
    return NULL;
}

/* Operations per second of all threads; rounds are chosen for about 20 ms. */
static double measure_peak(const struct rdu_node *n, void *(*work)(void *arg))
{
    struct job probe = {.kernels = &n->kernels, .rounds = 20000};
    work(&probe);
    double probe_s = run_jobs(&probe, 1, work), best = 0;
    uint32_t rounds = (uint32_t)BASE_MIN(probe.rounds * 0.02 / BASE_MAX(probe_s, 1e-9), 1e9);
    for (int round = 0; round < ROUNDS; round++) {
        struct job job[NODE_SOCKETS_MAX] = {0};
        double ops = 0;
        for (uint32_t i = 0; i < n->opt.threads; i++) {
            job[i].kernels = &n->kernels;
            job[i].rounds = BASE_MAX(rounds, 1u);
        }
        double seconds = run_jobs(job, n->opt.threads, work);
        for (uint32_t i = 0; i < n->opt.threads; i++)
            ops += job[i].ops;
        best = BASE_MAX(best, ops / seconds);
    }
    return best;
}

void rdu_node_measure_peaks(struct rdu_node *n, double *ret_int8, double *ret_f32)
{
    *ret_int8 = measure_peak(n, int8_main);
    *ret_f32 = measure_peak(n, f32_main);
}
