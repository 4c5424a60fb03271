// What Intel's archive expects from Intel's compiler and its tracing library, neither of which is linked here.
#include <cstring>

extern "C" {

void *_intel_fast_memcpy(void *destination, const void *source, size_t num_bytes) {
  return std::memcpy(destination, source, num_bytes);
}

void *_intel_fast_memset(void *destination, int value, size_t num_bytes) {
  return std::memset(destination, value, num_bytes);
}

// A tracing function that is null is not called.
void *__itt_domain_create_ptr__3_0 = nullptr;
void *__itt_event_create_ptr__3_0 = nullptr;
void *__itt_event_end_ptr__3_0 = nullptr;
void *__itt_event_start_ptr__3_0 = nullptr;
void *__itt_metadata_add_ptr__3_0 = nullptr;
void *__itt_string_handle_create_ptr__3_0 = nullptr;
void *__itt_task_begin_ptr__3_0 = nullptr;
void *__itt_task_end_ptr__3_0 = nullptr;
void *__itt_thread_set_name_ptr__3_0 = nullptr;
}
