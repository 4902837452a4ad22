/*
 * What a plugin defines. In C:
 *
 *   DROGHER_EXPORT const drogher_plugin_descriptor drogher_plugin_entry = {
 *       .magic = DROGHER_PLUGIN_MAGIC,
 *       .struct_size = sizeof(drogher_plugin_descriptor),
 *       .abi_major = DROGHER_ABI_MAJOR,
 *       .abi_minor = DROGHER_ABI_MINOR,
 *       .id = "org.example.thing",
 *       .name = "Thing", .version = "1.0", .vendor = "Example", .licence = "MIT",
 *       .device = &my_device_ops,
 *   };
 */
#ifdef __cplusplus
extern "C" {
#endif
DROGHER_EXPORT extern const drogher_plugin_descriptor drogher_plugin_entry;
#ifdef __cplusplus
}
#endif

#endif  // DROGHER_PLUGIN_H
