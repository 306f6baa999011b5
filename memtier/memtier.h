/* memtier/: the three-tier memory. The store on disk (`nvme`), an optional second RAM pool (`ddr`)
 * and the RAM pool kernels read (`hbm`), each with a hard byte budget. The unit is the segment:
 * immutable, content-addressed bytes. Rules that every caller relies on are in memtier/README.md.
 */
#ifndef SWITCHYARD_MEMTIER_H
#define SWITCHYARD_MEMTIER_H

#include "base/base.h"

enum memtier_tier { MEMTIER_NONE, MEMTIER_HBM, MEMTIER_DDR, MEMTIER_NVME };
const char *memtier_tier_name(enum memtier_tier t); /* "none", "hbm", "ddr", "nvme" */

enum memtier_kind {
    MEMTIER_KIND_LAYER,   /* one layer of one weight set */
    MEMTIER_KIND_ROWS,    /* a run of embedding or head rows, <= 4 MiB */
    MEMTIER_KIND_NORM,    /* small tensors outside the layers */
    MEMTIER_KIND_ADAPTER, /* one adapter, whole */
    MEMTIER_KIND_KV,      /* a full KV page */
    MEMTIER_KIND_OTHER,
    MEMTIER_KINDS,
};
const char *memtier_kind_name(enum memtier_kind k);

/* ==== The store: a directory ==================================================================
 * Data files hold page-aligned segments; the index (format version, checksum) is replaced by
 * write-new + fsync + rename. One writer at a time (flock on `lock`, with the holder's pid in the
 * message); readers see the index they opened until memtier_store_refresh. */
struct memtier_store;

enum memtier_access {
    MEMTIER_READ,  /* list, export */
    MEMTIER_WRITE, /* experts add, rm, gc: refused while another writer or a daemon has it */
    MEMTIER_SERVE, /* the daemon: shared with readers, excludes writers and other daemons */
};
/* Creates the directory for WRITE and SERVE. ERR_BUSY names the holder. */
enum err_code memtier_store_open(const char *dir, enum memtier_access access,
                                 struct memtier_store **ret, struct err *e) BASE_NODISCARD;
void memtier_store_close(struct memtier_store **s);
/* READ: take in what writers committed since open; pointers to objects become invalid. Others hold
 * the lock and know already: nothing happens. */
enum err_code memtier_store_refresh(struct memtier_store *s, struct err *e) BASE_NODISCARD;
const char *memtier_store_path(const struct memtier_store *s);
uint64_t memtier_store_bytes(const struct memtier_store *s); /* of data files */
char *memtier_store_largest_file(const struct memtier_store *s); /* caller frees; NULL = empty */

/* An object: a named, ordered list of segments with an opaque description (experts/ writes JSON and
 * the verbatim GGUF header as a blob). Names are like "set/<hash>" and "expert/<name>". */
struct memtier_segment_info {
    struct hash128 hash; /* XXH3-128 of the payload */
    uint64_t bytes;      /* payload; on disk padded to MEMTIER_ALIGN */
    enum memtier_kind kind;
};
#define MEMTIER_ALIGN 4096

struct memtier_object {
    const char *name;
    const void *meta; /* opaque bytes */
    size_t meta_bytes;
    const struct memtier_segment_info *segments;
    size_t segments_count;
};
size_t memtier_store_objects(const struct memtier_store *s);
/* Valid until the next commit or refresh. NULL = absent. */
const struct memtier_object *memtier_store_object_at(const struct memtier_store *s, size_t idx);
const struct memtier_object *memtier_store_find(const struct memtier_store *s, const char *name);

/* Write one object: begin, segments in load order, commit (or abort). A segment whose hash the
 * store already has is not written again. Nothing is visible before commit; a crash leaves only
 * bytes that gc reclaims. ERR_IO names the file; a full disk is refused before and while writing.
 * A commit ends the writer (*w = NULL) whether it succeeds or not. Where a file size limit is set
 * the process must ignore SIGXFSZ. */
struct memtier_writer;
enum err_code memtier_writer_open(struct memtier_store *s, const char *object,
                                  uint64_t bytes_expected, struct memtier_writer **ret,
                                  struct err *e) BASE_NODISCARD;
enum err_code memtier_writer_add(struct memtier_writer *w, enum memtier_kind kind, const void *data,
                                 size_t bytes, bool *ret_shared, struct err *e) BASE_NODISCARD;
enum err_code memtier_writer_commit(struct memtier_writer **w, const void *meta, size_t meta_bytes,
                                    struct err *e) BASE_NODISCARD;
void memtier_writer_abort(struct memtier_writer **w);

enum err_code memtier_store_remove(struct memtier_store *s, const char *object,
                                   struct err *e) BASE_NODISCARD;
/* Read one segment's payload (bytes from segment_info) with plain reads and check its hash; for
 * import, export, merge and verify, not for serving. */
enum err_code memtier_store_read(struct memtier_store *s, struct hash128 hash, void *dst,
                                 size_t bytes, struct err *e) BASE_NODISCARD;
struct memtier_verify_report {
    uint64_t segments, bytes, bad;
    char first_bad[200];
};
enum err_code memtier_store_verify(struct memtier_store *s, const struct progress *p,
                                   struct memtier_verify_report *ret, struct err *e) BASE_NODISCARD;
struct memtier_gc_report {
    uint64_t files_removed, bytes_removed;
};
enum err_code memtier_store_gc(struct memtier_store *s, struct memtier_gc_report *ret,
                               struct err *e) BASE_NODISCARD;

/* ==== The tiers: residency on the serving side =================================================
 * All functions are for the engine thread unless they say otherwise; the loader has its own. */
struct memtier;

enum memtier_loader {
    MEMTIER_LOADER_AUTO,
    MEMTIER_LOADER_URING,
    MEMTIER_LOADER_PREAD,
    MEMTIER_LOADER_BUFFERED
};
enum memtier_verify { MEMTIER_VERIFY_ALWAYS, MEMTIER_VERIFY_FIRST, MEMTIER_VERIFY_NEVER };

struct memtier_options {
    uint64_t hbm_bytes, ddr_bytes;
    enum memtier_loader loader;
    enum memtier_verify verify;
    const char *policy; /* "lru", "gdsf"; NULL = "gdsf" */
    /* KV pages that nobody uses may go to a file in the store, so large; 0 = none. Needs a store that is
     * served. The rate at which they are expected back, bytes/s; 0 = measured at open. */
    uint64_t spill_bytes;
    double spill_rate;
    bool measure;       /* time block sizes and depths at open and read with the best (0.1 s) */
    /* Fault injection for tests: called on the loader thread before each read; a nonzero errno
     * makes the read fail with it. */
    int (*fault)(void *ctx, uint64_t file_offset, size_t bytes);
    void *fault_ctx;
};
enum err_code memtier_open(const struct memtier_options *opt, struct memtier_store *store,
                           struct memtier **ret, struct err *e) BASE_NODISCARD;
void memtier_close(struct memtier **m);
/* Which loader runs and why not a better one, e.g. "io_uring (direct, plain buffers: RLIMIT_MEMLOCK
 * is 8.0 MiB ... cure: LimitMEMLOCK=infinity ...)". May change once, when registering fails later.
 */
const char *memtier_loader_text(const struct memtier *m);

/* Every segment of the store gets an index at open; UINT32_MAX = unknown hash. */
uint32_t memtier_find(const struct memtier *m, struct hash128 hash);
uint64_t memtier_segment_bytes(const struct memtier *m, uint32_t seg);
const char *memtier_segment_path(const struct memtier *m, uint32_t seg); /* of its data file */
/* What a segment or page of so many bytes takes of the budget: room is given out in larger pieces.
 * Pure. */
uint64_t memtier_footprint(uint64_t bytes);

/* A lease pins an ordered list of segments: all or none. Resident ones are pinned at once, the
 * others are queued to the loader in the order given (a segment listed twice counts once); one load
 * serves all waiters. ERR_BUSY: does not fit beside what is pinned now; ERR_NO_MEMORY: can never
 * fit beside what is held, with the numbers. Evicts unpinned, unheld segments by policy. */
struct memtier_lease;
enum err_code memtier_reserve(struct memtier *m, const uint32_t *segs, size_t count,
                              uint64_t now_ns, struct memtier_lease **ret,
                              struct err *e) BASE_NODISCARD;
/* Leading segments of the lease's list that are resident. */
size_t memtier_lease_ready(const struct memtier_lease *l);
size_t memtier_lease_count(const struct memtier_lease *l);
/* False + the cause if one of its loads failed for good. */
bool memtier_lease_ok(const struct memtier_lease *l, struct err *e);
uint64_t memtier_lease_load_bytes(const struct memtier_lease *l); /* not resident when reserved */
uint64_t memtier_lease_ready_ns(const struct memtier_lease *l);   /* clock_ns of the last arrival */
/* Of load_bytes, what is still on its way. */
uint64_t memtier_lease_missing_bytes(const struct memtier_lease *l);
/* The farthest tier anything in it came from. */
enum memtier_tier memtier_lease_origin(const struct memtier_lease *l);
/* Unfinished loads that nobody else waits for are cancelled. */
void memtier_release(struct memtier *m, struct memtier_lease **l);
/* Address of a pinned, resident segment; valid while a lease pins it. 64-byte aligned. */
const void *memtier_ptr(const struct memtier *m, uint32_t seg);
enum memtier_tier memtier_where(const struct memtier *m, uint32_t seg);

/* Held segments are not evicted (router, generalist). Nested: each hold needs an unhold. */
void memtier_hold(struct memtier *m, uint32_t seg);
void memtier_unhold(struct memtier *m, uint32_t seg);
uint32_t memtier_holds(const struct memtier *m, uint32_t seg); /* how many */
uint64_t memtier_held_bytes(const struct memtier *m);          /* of the budget, resident or not */

/* KV pages: segments from the same budget whose bytes come from their owner. A page is opened with
 * one pin; while it is pinned it neither moves nor goes. A sealed one is not written to any more and
 * stays when its last pin goes, idle, until something else needs the room; one that is not sealed is
 * freed then. UINT32_MAX = does not fit even after evicting what may be evicted. */
uint32_t memtier_page_open(struct memtier *m, size_t bytes);
void *memtier_page_ptr(const struct memtier *m, uint32_t page); /* while pinned */
void memtier_page_pin(struct memtier *m, uint32_t page);        /* one that is in hbm */
void memtier_page_unpin(struct memtier *m, uint32_t page);
/* What the policy needs to know: seconds to make the page again and its place in its chain, 0 =
 * first. `owner` is handed to memtier_on_page_gone's function. */
struct memtier_page_worth {
    double remake_seconds;
    uint32_t depth;
};
void memtier_page_seal(struct memtier *m, uint32_t page, const struct memtier_page_worth *worth,
                       void *owner);
void memtier_page_drop(struct memtier *m, uint32_t page); /* an idle one, without telling */
/* Called when an idle page is evicted; its index means nothing from then on. It must not call back
 * into memtier. */
typedef void memtier_page_gone_fn(void *ctx, void *owner);
void memtier_on_page_gone(struct memtier *m, memtier_page_gone_fn *gone, void *ctx);
/* Records for so many more pages, so that opening them allocates nothing. */
void memtier_page_expect(struct memtier *m, size_t count);
/* Is it in hbm, so that it may be pinned? Else it is in the spill file: reserve it like a segment. */
bool memtier_page_here(const struct memtier *m, uint32_t page);
size_t memtier_page_room(const struct memtier *m, size_t bytes); /* how many could be opened now */
uint64_t memtier_room(const struct memtier *m); /* bytes neither pinned nor held */

/* ---- what the caller may tell, so that better things stay or come early ---- */

/* Take in segments that were committed to the store since open (or moved by a repair). Indices of
 * known segments do not change. */
enum err_code memtier_refresh(struct memtier *m, struct err *e) BASE_NODISCARD;
/* A request that is already routed will need these segments: +1 when it is queued, -1 when it has
 * ended. The policy evicts such a segment only when nothing else is left, and +1 is also what the
 * policy counts as one use: a request takes hundreds of reservations, and a count of those would
 * forget everything within a few requests. Reservations count for segments that nobody demands. */
void memtier_demand(struct memtier *m, const uint32_t *segs, size_t count, int change);
/* Evict now what of these is resident, unpinned, unheld and not demanded, as if its room were
 * needed: to ddr if `to_ddr` and there is room, else dropped from ddr too. Returns bytes evicted.
 */
uint64_t memtier_drop(struct memtier *m, const uint32_t *segs, size_t count, bool to_ddr);
/* Load what is absent, in order, into free space only and behind every demand load; needs no
 * release, may be evicted like anything else, and gives way when a reservation needs the room. Does
 * nothing while more than half of what it fetched lately was never used. Returns segments begun. */
size_t memtier_prefetch(struct memtier *m, const uint32_t *segs, size_t count);
void memtier_prefetch_cancel(struct memtier *m); /* those still loading that nobody reserved */
/* Between steps: move unpinned segments together at the bottom. Returns bytes moved; stops after
 * about `bytes_max`. Not needed for correctness: a reservation does it when it must. */
uint64_t memtier_compact(struct memtier *m, uint64_t bytes_max);
/* Change the budget. Growing is at once; shrinking evicts now what it may and the rest as leases
 * and pages are given back (stats: hbm_used against hbm_budget). ERR_NO_MEMORY: beyond what the
 * machine has, or less than what is held. */
enum err_code memtier_set_budget(struct memtier *m, uint64_t hbm_bytes,
                                 struct err *e) BASE_NODISCARD;
/* Why the last load of the segment failed; false if it did not, or a later one succeeded. */
bool memtier_failure(const struct memtier *m, uint32_t seg, struct err *e);
/* Recent bytes/s of the loader while busy; 0 = nothing measured yet. Any thread. */
double memtier_load_rate(const struct memtier *m);

/* Readable when loads have completed; the engine polls it while a step is blocked. */
int memtier_fd(const struct memtier *m);
/* Take completions in: call before looking at leases. Cheap when nothing happened. */
void memtier_poll(struct memtier *m);

struct memtier_stats {
    uint64_t hbm_budget, hbm_used, hbm_pinned, hbm_held, hbm_peak;
    uint64_t bytes_by_kind[MEMTIER_KINDS];
    uint64_t ddr_budget, ddr_used;
    uint64_t hits, misses;               /* segments of reservations found / not found in hbm */
    uint64_t loads, load_bytes, load_ns; /* nvme -> hbm; ns = sum over busy time of the loader */
    uint64_t evictions, evicted_bytes, cancelled, failed, waiters, segments_resident;
    uint64_t evictions_by_kind[MEMTIER_KINDS], ddr_evictions;
    uint64_t ddr_hits, ddr_misses;      /* of those not found in hbm: found / not found in ddr */
    uint64_t load_retries, load_cpu_ns; /* CPU time of the loader thread */
    double load_rate;                   /* bytes/s while busy, recent; 0 = not measured */
    uint64_t demotions, promotions, copy_bytes, copy_ns; /* hbm -> ddr, ddr -> hbm */
    uint64_t demote_bytes, promote_bytes;
    uint64_t prefetched, prefetch_used, prefetch_wasted; /* segments */
    uint64_t pages, pages_idle; /* KV pages pinned now; those kept for whoever comes next */
    uint64_t page_bytes;        /* of the pinned ones */
    uint64_t pages_spilled;     /* with a copy in the spill file */
    uint64_t spill_bytes;       /* written there since open */
    uint64_t largest_free; /* bytes of the longest free run: fragmentation against hbm_used */
    uint64_t compacted_bytes;
    uint64_t writes_out; /* pages on their way to the spill file */
    uint64_t jobs_out; /* loads and copies the loader has now */
    /* Per segment, submit to done; last, because they are large and seldom change. */
    struct hist load_hist, promote_hist, demote_hist;
};
void memtier_stats(const struct memtier *m, struct memtier_stats *ret); /* any thread (locks) */

/* ==== The device alone ==========================================================================
 * What the loader is compared with: the same bytes read directly by a reader that does nothing
 * else. One thread; blocks. */
struct memtier_device;
struct memtier_shape {
    uint32_t block_bytes, depth;
};
/* For reads of up to `bytes_max` into memory of its own, populated and registered where allowed. */
enum err_code memtier_device_open(uint64_t bytes_max, struct memtier_device **ret,
                                  struct err *e) BASE_NODISCARD;
void memtier_device_close(struct memtier_device **d);
/* Nanoseconds that reading [0, bytes) of the file took. ERR_UNSUPPORTED: direct reads are refused
 * there. */
enum err_code memtier_device_read(struct memtier_device *d, const char *path, uint64_t bytes,
                                  struct memtier_shape shape, uint64_t *ret_ns,
                                  struct err *e) BASE_NODISCARD;

/* ==== Policies alone: pure functions ===========================================================
 * The same code that decides in the daemon, for whoever replays it on virtual time. Any thread. */

/* All that a policy sees of a segment. */
struct policy_view {
    uint64_t bytes;
    enum memtier_kind kind;
    uint64_t idle_uses; /* reservations since it was last in one */
    uint64_t idle_ns;   /* since its last reservation */
    double uses;        /* reservations it was in, decayed: halved every POLICY_HALF_LIFE of them */
    double load_seconds;  /* to read it back, by the measured rate */
    uint64_t resident_ns; /* since it arrived */
    uint32_t queued;      /* requests already routed that will need it */
};
struct policy;
const struct policy *policy_find(const char *name); /* NULL = unknown */
/* The cost of evicting the segment under the policy and the rules that hold under every policy:
 * queued demand and minimum residency. */
double policy_cost(const struct policy *p, const struct policy_view *v);
/* The decayed count after `idle_uses` reservations without it. */
double policy_decay(double uses, uint64_t idle_uses);

#endif
